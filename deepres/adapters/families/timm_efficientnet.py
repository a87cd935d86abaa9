"""timm's EfficientNet and MobileNet, MobileOne aside: blocks that have a shortcut only where they keep the shape."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm, create
from deepres.adapters.patterns import SitePattern

_block = (SitePattern(("drop_path",), when="has_skip"),)
_m = "timm.models._efficientnet_blocks:"
_kinds = ("ConvBnAct", "DepthwiseSeparableConv", "InvertedResidual", "EdgeResidual", "UniversalInvertedResidual")
ADAPTER = Timm(
    "EfficientNet, EfficientNetV2, MobileNetV2, MobileNetV3, MNASNet",
    "timm",
    ("timm.models.efficientnet", "timm.models.mobilenetv3", "timm.models._efficientnet_blocks"),
    {_m + kind: _block for kind in _kinds},
    notes="blocks without a shortcut are no sites",
    examples=(
        Example("EfficientNet", create("efficientnet_b0"), 9),
        Example("MobileNetV3", create("mobilenetv3_large_100"), 10),
    ),
)
