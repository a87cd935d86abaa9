"""torchvision's EfficientNet and MobileNet: blocks that have a shortcut only where they keep the shape."""

from __future__ import annotations

from functools import partial

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._torchvision import Torchvision
from deepres.adapters.patterns import SitePattern

_mbconv = (SitePattern(("stochastic_depth",), when="use_res_connect"),)


def _efficientnet(last: int = 2) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    settings = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(2, 3, 2, 8, 16, last)]
    return EfficientNet(settings, dropout=0.0, num_classes=10)


def _v2(last: int = 2) -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2

    return MobileNetV2(num_classes=10, inverted_residual_setting=[[1, 16, 1, 1], [2, 24, 2, 2], [2, 32, last, 2]])


def _v3(last: bool = True) -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    block = partial(InvertedResidualConfig, width_mult=1.0)
    settings = [block(16, 3, 16, 16, False, "RE", 1, 1), block(16, 3, 32, 24, True, "HS", 2, 1)]
    return MobileNetV3(settings + [block(24, 3, 48, 24, True, "HS", 1, 1)] * last, 32, num_classes=10)


ADAPTER = Torchvision(
    "EfficientNet, EfficientNetV2, MobileNetV2, MobileNetV3",
    "torchvision",
    ("torchvision.models.efficientnet", "torchvision.models.mobilenetv2", "torchvision.models.mobilenetv3"),
    {
        "torchvision.models.efficientnet:MBConv": _mbconv,
        "torchvision.models.efficientnet:FusedMBConv": _mbconv,
        "torchvision.models.mobilenetv2:InvertedResidual": (SitePattern(("conv",), when="use_res_connect"),),
        "torchvision.models.mobilenetv3:InvertedResidual": (SitePattern(("block",), when="use_res_connect"),),
    },
    notes="blocks without a shortcut are not sites",
    examples=(
        Example("EfficientNet", _efficientnet, 2, rebuild=lambda: _efficientnet(1)),
        Example("MobileNetV2", _v2, 2, rebuild=lambda: _v2(1)),
        Example("MobileNetV3", _v3, 2, rebuild=lambda: _v3(False)),
    ),
)
