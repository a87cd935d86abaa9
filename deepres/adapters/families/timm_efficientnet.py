"""timm's EfficientNet and MobileNet, MobileOne aside: blocks that have a shortcut only where they keep the shape."""

from __future__ import annotations

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm
from deepres.adapters.patterns import SitePattern


def _efficientnet(last: int = 2) -> nn.Module:
    from timm.models.efficientnet import EfficientNet, decode_arch_def

    stages = [["ds_r1_k3_s1_e1_c8"], ["er_r2_k3_s2_e2_c12"], [f"ir_r{last}_k3_s2_e2_c16_se0.25"]]
    return EfficientNet(decode_arch_def(stages), num_classes=10, num_features=32, stem_size=8)


def _mobilenet(last: int = 2) -> nn.Module:
    from timm.models.mobilenetv3 import MobileNetV3, decode_arch_def

    stages = [["ds_r1_k3_s1_e1_c16_nre"], [f"ir_r{last}_k5_s2_e3_c24_se0.25"], ["cn_r1_k1_s1_c48"]]
    return MobileNetV3(decode_arch_def(stages), num_classes=10, num_features=32)


_block = (SitePattern(("drop_path",), when="has_skip"),)
_m = "timm.models._efficientnet_blocks:"
_kinds = ("ConvBnAct", "DepthwiseSeparableConv", "InvertedResidual", "EdgeResidual", "UniversalInvertedResidual")
ADAPTER = Timm(
    "EfficientNet, EfficientNetV2, MobileNetV2, MobileNetV3, MNASNet",
    "timm",
    ("timm.models.efficientnet", "timm.models.mobilenetv3", "timm.models._efficientnet_blocks"),
    {_m + kind: _block for kind in _kinds},
    notes="blocks without a shortcut are not sites",
    examples=(
        Example("EfficientNet", _efficientnet, 3, rebuild=lambda: _efficientnet(1)),
        Example("MobileNetV3", _mobilenet, 2, rebuild=lambda: _mobilenet(1)),
    ),
)
