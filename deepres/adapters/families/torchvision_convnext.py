"""torchvision's ConvNeXt."""

from __future__ import annotations

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._torchvision import Torchvision
from deepres.adapters.patterns import SitePattern


def _build(last: int = 2) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, last)], layer_scale=0.5, num_classes=10)


ADAPTER = Torchvision(
    "ConvNeXt",
    "torchvision",
    ("torchvision.models.convnext",),
    {"torchvision.models.convnext:CNBlock": (SitePattern(("stochastic_depth",)),)},
    examples=(Example("ConvNeXt", _build, 3, rebuild=lambda: _build(1)),),
)
