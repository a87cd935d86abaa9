"""Shared parts of torchvision's families."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepres.adapters.adapter import Adapter

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Torchvision(Adapter):
    """torchvision notes nothing in its networks; all of its weights were trained with ImageNet's mean and deviation."""

    def spec(self, model: nn.Module) -> dict[str, Any]:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear", "crop": 224 / 256}
