"""A fresh classifier for a network that is trained on other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deepres.adapters import spec_of
from deepres.adapters.adapter import note_classes
from deepres.adapters.surgery import NOTE
from deepres.errors import DeepresError
from deepres.models.builders import Origin


def replace_head(model: nn.Module, classes: int) -> None:
    """Put a fresh last layer of ``classes`` outputs into ``model``, and note it where its configuration is kept.

    Raises ``DeepresError`` for a network whose last layer is neither linear nor a convolution.
    """
    path = spec_of(model).classifier
    old = model.get_submodule(path) if path is not None else None
    fresh: nn.Module
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        fresh = nn.Conv2d(old.in_channels, classes, old.kernel_size, bias=old.bias is not None)  # type: ignore[arg-type]
    else:
        raise DeepresError(f"{type(model).__name__}: has no last layer that could be replaced for {classes} classes")
    assert path is not None
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, fresh.to(old.weight.device, old.weight.dtype))
    _note(model, classes)


def select_outputs(model: nn.Module, order: Sequence[int]) -> None:
    """Keep the outputs ``order`` of the last layer of ``model``, in this order. Raises ``DeepresError`` as ``replace_head`` does."""
    path = spec_of(model).classifier
    old: Any = model.get_submodule(path) if path is not None else None
    replace_head(model, len(order))
    assert path is not None
    fresh: Any = model.get_submodule(path)
    with torch.no_grad():
        fresh.weight.copy_(old.weight[list(order)])
        if old.bias is not None:
            fresh.bias.copy_(old.bias[list(order)])


def _note(model: nn.Module, classes: int) -> None:
    note_classes(model, classes)
    for attribute in ("num_classes", "num_labels"):
        if isinstance(getattr(model, attribute, None), int):
            setattr(model, attribute, classes)
    noted = getattr(model, NOTE, None)
    if isinstance(noted, Origin):
        noted.classes = classes
