"""Hugging Face's ResNet."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepres.adapters.adapter import Example, Owners
from deepres.adapters.families._huggingface import HuggingFace, configurations, from_config
from deepres.adapters.patterns import SitePattern


class _ResNet(HuggingFace):
    """Depth is a list with a number per stage."""

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        stages, stage = owners[-3], owners[-2]
        for config in configurations(owners):
            depths = list(config.depths)
            depths[list(stages.children()).index(stage)] -= 1
            config.depths = depths

    def activates_inputs(self, owners: Owners) -> bool:
        return all(config.hidden_act == "relu" for config in configurations(owners))

    def undeletable(self, owners: Owners, name: str) -> str:
        return "it is the last block of its stage, which needs one" if len(owners[-1]._modules) == 1 else ""

    def spec(self, model: nn.Module) -> dict[str, Any]:
        return {**super().spec(model), "layout": "NCHW"}


_m = "transformers.models.resnet"
_pattern = (SitePattern(("layer",), ("shortcut",), ("activation",)),)
_settings = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 3], "num_labels": 10}
ADAPTER = _ResNet(
    "ResNet",
    "Hugging Face",
    (_m,),
    {f"{_m}.modeling_resnet:ResNetBasicLayer": _pattern, f"{_m}.modeling_resnet:ResNetBottleNeckLayer": _pattern},
    examples=(
        Example("ResNet", from_config("ResNetForImageClassification", "ResNetConfig", **_settings), 4),
        Example(
            "ResNet of basic blocks",
            from_config("ResNetForImageClassification", "ResNetConfig", **_settings, layer_type="basic"),
            4,
        ),
    ),
)
