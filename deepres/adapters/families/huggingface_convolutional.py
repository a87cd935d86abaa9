"""Hugging Face's convolutional networks, whose configuration has a number of blocks for each stage."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepres.adapters.adapter import Example, Owners
from deepres.adapters.families._huggingface import HuggingFace, configurations, from_config
from deepres.adapters.patterns import SitePattern


class _Stages(HuggingFace):
    """Depth is a list with a number per stage."""

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        stages, stage = owners[-3], owners[-2]
        for config in configurations(owners):
            depths = list(config.depths)
            depths[list(stages.children()).index(stage)] -= 1
            config.depths = depths

    def undeletable(self, owners: Owners, name: str) -> str:
        return "it is the last block of its stage, which needs one" if len(owners[-1]._modules) == 1 else ""

    def spec(self, model: nn.Module) -> dict[str, Any]:
        return {**super().spec(model), "layout": "NCHW", "size": None}


class _ReLUStages(_Stages):
    """Stages whose blocks end in an activation, as the stem does."""

    def activates_inputs(self, owners: Owners) -> bool:
        return all(config.hidden_act == "relu" for config in configurations(owners))


_m = "transformers.models."
_relu = (SitePattern(("layer",), ("shortcut",), ("activation",)),)
_settings: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 3], "num_labels": 10}
_convnext = {**_settings, "num_stages": 2, "image_size": 32}


def _example(kind: str, name: str = "", *, other_additions: int = 0, **options: Any) -> Example:
    build = from_config(f"{kind}ForImageClassification", f"{kind}Config", **options)
    return Example(name or kind, build, 4, other_additions=other_additions)


ADAPTER = (
    _ReLUStages(
        "ResNet, RegNet",
        "Hugging Face",
        (_m + "resnet", _m + "regnet"),
        {
            _m + "resnet.modeling_resnet:ResNetBasicLayer": _relu,
            _m + "resnet.modeling_resnet:ResNetBottleNeckLayer": _relu,
            _m + "regnet.modeling_regnet:RegNetXLayer": _relu,
            _m + "regnet.modeling_regnet:RegNetYLayer": _relu,
        },
        examples=(
            _example("ResNet", embedding_size=16, **_settings),
            _example("ResNet", "ResNet of basic blocks", embedding_size=16, layer_type="basic", **_settings),
            _example("RegNet", embedding_size=16, groups_width=8, **_settings),
            _example("RegNet", "RegNet X", embedding_size=16, groups_width=8, layer_type="x", **_settings),
        ),
    ),
    _Stages(
        "ConvNeXt, ConvNeXt V2",
        "Hugging Face",
        (_m + "convnext", _m + "convnextv2"),
        {
            _m + "convnext.modeling_convnext:ConvNextLayer": (SitePattern(("drop_path",)),),
            _m + "convnextv2.modeling_convnextv2:ConvNextV2Layer": (SitePattern(("drop_path",)),),
        },
        examples=(
            _example("ConvNext", "ConvNeXt", layer_scale_init_value=0.5, **_convnext),
            _example("ConvNextV2", "ConvNeXt V2", other_additions=4, **_convnext),  # in its response normalisation
        ),
    ),
)
