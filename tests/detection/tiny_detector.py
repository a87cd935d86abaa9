"""Settings of a small detector, and a small VGG."""

from __future__ import annotations

import torch
from torch import nn

# a detector that learns the rectangles in a few seconds
TINY = {
    "size": 64,
    "longest": 64,
    "channels": 16,
    "width": 32,
    "samples": 32,
    "proposals": (60, 40),
    "anchors": (12.0, 20.0, 32.0, 48.0),
}


class NarrowVgg(nn.Module):
    """VGG-16's form: five poolings, then three fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = [], 3
        for out in (4, 8, 8, 8, 8):
            layers += [nn.Conv2d(width, out, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            width = out
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(8 * 49, 20), nn.ReLU(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
