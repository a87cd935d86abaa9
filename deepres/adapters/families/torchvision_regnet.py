"""torchvision's RegNet."""

from __future__ import annotations

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._torchvision import Torchvision
from deepres.adapters.patterns import SitePattern


def _build(last: int = 2) -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams([1, last], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25), num_classes=10)


ADAPTER = Torchvision(
    "RegNet",
    "torchvision",
    ("torchvision.models.regnet",),
    {"torchvision.models.regnet:ResBottleneckBlock": (SitePattern(("f",), ("proj",), ("activation",)),)},
    examples=(Example("RegNetY", _build, 3, rebuild=lambda: _build(1)),),
)
