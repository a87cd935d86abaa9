"""timm's RegNet."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm, timm_model
from deepres.adapters.patterns import SitePattern

_m = "timm.models.regnet:"
ADAPTER = Timm(
    "RegNetX, RegNetY, RegNetZ",
    "timm",
    ("timm.models.regnet",),
    {
        _m + "Bottleneck": (SitePattern(("drop_path",), ("downsample",), ("act3",), when="downsample"),),
        _m + "PreBottleneck": (SitePattern(("drop_path",), ("downsample",), when="downsample"),),
    },
    containers=(_m + "RegStage",),
    notes="its constructor computes widths and depths from one linear function, so it can rebuild a network only if the last blocks "
    "were deleted",
    examples=(Example("regnety_002", timm_model("regnety_002"), 13, rebuild=timm_model("regnety_002", depth=12)),),
)
