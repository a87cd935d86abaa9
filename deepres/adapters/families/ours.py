"""Networks of deepres: ResNets and Transformers, made of one ``Residual`` module, described by one configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from deepres.adapters.adapter import Adapter, Example, Owners
from deepres.adapters.patterns import Layout, SitePattern
from deepres.nn import create
from deepres.nn.attention import MLP, Attention
from deepres.nn.resnet import ResNet, Stage
from deepres.nn.transformer import Transformer, TransformerConfig


class Ours(Adapter):
    def undeletable(self, owners: Owners, name: str) -> str:
        model = _network(owners)
        if isinstance(model, ResNet):
            if len(owners[-1]._modules) == 1:
                return "it is the last block of its stage, which needs one"
            if model.config.preact and name == "0":
                return "it opens a pre-activation stage, and is built unlike the others"
        return ""

    def is_configured(self, owners: Owners) -> bool:
        return _network(owners) is not None

    def activates_inputs(self, owners: Owners) -> bool:
        return isinstance(_network(owners), ResNet)

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        model = _network(owners)
        if isinstance(model, ResNet):
            if model.config.survival < 1:  # it depends on how many blocks there are
                model.fold_survival()
            # a detector may have taken its last stages out, and keeps their places
            counts = zip(model.stages, model.config.blocks, strict=True)
            blocks = tuple(len(stage.blocks) if isinstance(stage, Stage) else count for stage, count in counts)
            model.config = dataclasses.replace(model.config, blocks=blocks)
        elif isinstance(model, Transformer):
            kinds = model.config.blocks
            model.config = dataclasses.replace(model.config, blocks=kinds[:index] + kinds[index + 1 :])

    def kind(self, block: nn.Module, pattern: SitePattern) -> str:
        core = getattr(block.branch, "core", None)
        return "attention" if isinstance(core, Attention) else "mlp" if isinstance(core, MLP) else super().kind(block, pattern)

    def layout(self, block: nn.Module, pattern: SitePattern) -> Layout:
        return "NLC" if isinstance(getattr(block.branch, "core", None), Attention | MLP) else pattern.layout

    def classes_changed(self, model: nn.Module, classes: int) -> None:
        if isinstance(model, ResNet | Transformer):
            model.config = dataclasses.replace(model.config, num_classes=classes)

    def spec(self, model: nn.Module) -> dict[str, Any]:
        if isinstance(model, ResNet):
            return {"usual_size": 32 if model.config.stem == "cifar" else 224}
        if isinstance(model, Transformer):
            text = model.config.vocabulary > 0
            return {"layout": "NLC", "size": model.config.context if text else model.config.image}
        return {}


def _network(owners: Owners) -> nn.Module | None:
    return next((owner for owner in owners if isinstance(owner, ResNet | Transformer)), None)


def _transformer(text: bool, order: str = "pre") -> Transformer:
    size: dict[str, Any] = {"vocabulary": 50, "context": 16} if text else {"image": 32, "patch": 8, "num_classes": 10}
    return Transformer(TransformerConfig(("attention", "mlp") * 2, 16, 2, order=order, **size))  # type: ignore[arg-type]


ADAPTER = Ours(
    "ResNet (all shortcut options, pre-activation), Transformer",
    "deepres",
    ("deepres.nn",),
    {"deepres.nn.residual:Residual": (SitePattern(("branch",), ("shortcut",), ("after",)),)},
    notes="each stage keeps at least one block",
    examples=(
        Example("resnet20-cifar", lambda: create("resnet20-cifar"), 9),
        Example("resnet29-cifar-preact-bottleneck", lambda: create("resnet29-cifar-preact-bottleneck"), 9),
        Example("vision Transformer", lambda: _transformer(False), 4),
        Example("decoder", lambda: _transformer(True), 4, (4, 12), 50),
    ),
)
