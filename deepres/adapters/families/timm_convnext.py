"""timm's ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm, timm_model
from deepres.adapters.patterns import SitePattern

_settings = {"dims": (8, 16, 24, 32), "ls_init_value": 0.5}
ADAPTER = Timm(
    "ConvNeXt, ConvNeXt V2",
    "timm",
    ("timm.models.convnext",),
    {"timm.models.convnext:ConvNeXtBlock": (SitePattern(("drop_path",), ("shortcut",)),)},
    examples=(
        Example(
            "ConvNeXt",
            timm_model("convnext_atto", depths=(1, 1, 1, 2), **_settings),
            5,
            rebuild=timm_model("convnext_atto", depths=(1, 1, 1, 1), **_settings),
        ),
    ),
)
