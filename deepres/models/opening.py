"""Networks by reference: a run, a file, a name of ours, ``torchvision.models:resnet50``, ``timm:resnet26``, ``hf:FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.errors import DeepresError
from deepres.models.build import build
from deepres.models.store import load, notes, read
from deepres.nn import zoo


def open_model(
    reference: str | Path,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    channels: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``reference`` names, in eval mode, and what was noted with it (class names, how to prepare images).

    - a run's folder or a weights file: as ``load`` reads it;
    - ``hf:FOLDER``: a Hugging Face model saved there, as the class that its configuration names;
    - ``timm:NAME``: from timm, freshly initialised unless ``weights`` are given;
    - ``MODULE:FUNCTION``: what the function returns, such as ``torchvision.models:resnet50``;
    - a name from ``names()``: a fresh network of ours.

    ``weights``: a state_dict to load into it, strictly. ``classes`` and ``channels`` shape a network that is built here and
    has no weights; where there are weights, these say.

    Raises ``DeepresError`` for what does not exist or does not fit.
    """
    text = str(reference)
    if Path(text).exists():
        if weights is not None:
            raise DeepresError(f"{text}: has weights of its own, so --weights makes no sense with it")
        return load(text), notes(text)
    colon = ":" in text
    state = read(weights)[0] if weights is not None else None
    if state is not None:
        state = {name.removeprefix("module."): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
        classes = len(matrices[-1]) if matrices else classes
        channels = next((tensor.shape[1] for tensor in state.values() if tensor.ndim == 4), channels)
    if not colon:
        options = {key: value for key, value in (("num_classes", classes), ("in_channels", channels)) if value}
        model: nn.Module = zoo.create(text, **options)
    else:
        model = build(text, classes, channels)
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise DeepresError(f"{weights}: not the weights of {text} ({str(error).splitlines()[-1].strip()})") from error
    return model.eval(), {}


def input_size(model: nn.Module) -> int | None:
    """The side of the images that the network insists on, in pixels; None where any will do."""
    for holder in (model, getattr(model, "config", None)):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int):
            return size
    embed = getattr(model, "patch_embed", None)  # timm's ViT
    size = getattr(embed, "img_size", None)
    return size[0] if isinstance(size, tuple) else None


def input_channels(model: nn.Module) -> int | None:
    """Channels of the images that the network takes: those of its first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def output_classes(model: nn.Module) -> int | None:
    """Classes that the network tells apart: the outputs of its last linear layer."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return linear[-1].out_features if linear else None
