"""The network of a run: freshly initialised, or from weights that the run names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from deepres.data import Data, Tokens, Vocabulary
from deepres.errors import DeepresError
from deepres.models import open_model, vocabulary_of
from deepres.nn.transformers import TRANSFORMERS
from deepres.training.run import Run


def training_model(run: Run, data: Data, device: torch.device, say: Callable[[str], None] = lambda text: None) -> nn.Module:
    """Build the network that ``run.net`` names for ``data``, initialised from ``run.seed`` or from the weights ``run.init``.

    A head of another number of classes starts afresh; ``say`` is told so, and whether averaged weights were taken.

    Raises ``DeepresError`` where network, data and weights do not fit together.
    """
    torch.manual_seed(run.seed)
    ours = not (":" in run.net or Path(run.net).exists())
    if ours and data.is_text and run.net not in TRANSFORMERS:
        raise DeepresError(f"{run.net}: takes images and {data.name} is a text; give a language model, such as hf:FOLDER")
    options = dict(run.options)
    if ours and run.net in TRANSFORMERS:
        options = {**_shape_for(data, run.net), **options}
    elif ours:
        options["width"] = run.width
    if isinstance(data.prepare, Tokens):
        _check_vocabulary(run, data.prepare.vocabulary)
    classes, channels = len(data.classes), data.prepare.channels or None
    opened = open_model(run.net, weights=run.init, classes=classes, channels=channels, new_head=not data.is_text, **options)
    if opened.spec.classes not in (None, classes):
        what = "tokens" if data.is_text else "classes"
        raise DeepresError(f"{run.net}: has {opened.spec.classes} {what} and {data.name} has {classes}")
    longest = opened.spec.longest
    if data.is_text and longest is not None and longest < data.prepare.size:
        raise DeepresError(f"{run.net}: reads at most {longest} tokens at a time; give --size {longest} or less")
    for remark in opened.remarks:
        say(remark)
    return opened.model.to(device)


def training_tokens(run: Run) -> str | Vocabulary | None:
    """By which tokens a text is read: as ``run`` says, else as the weights that it starts from; None for the usual."""
    return run.tokens or vocabulary_of(run.init or run.net)


def _check_vocabulary(run: Run, vocabulary: Vocabulary | None) -> None:
    source = run.init or run.net
    theirs = vocabulary_of(source)
    if theirs is not None and vocabulary is not None and theirs != vocabulary:
        raise DeepresError(
            f"{source}: its weights are for {len(theirs):,} tokens ({theirs.kind}), and the text is read by {len(vocabulary):,} others "
            f"({vocabulary.kind}); leave --tokens out to read it by theirs"
        )


def _shape_for(data: Data, net: str) -> dict[str, int]:
    """Options of a Transformer that follow from the data: tokens and context of a decoder, the image of an encoder.

    Raises ``DeepresError`` for a text and a network of images, and the other way round.
    """
    decoder = TRANSFORMERS[net].vocabulary > 0
    if decoder != data.is_text:
        raise DeepresError(
            f"{net}: takes {'text' if decoder else 'images'}, and {data.name} holds {'text' if data.is_text else 'images'}"
        )
    return {"vocabulary": len(data.classes), "context": data.prepare.size} if decoder else {"image": data.prepare.size}


def usual_recipe(model: nn.Module) -> str:
    """Name of the recipe that a network trains well by: ``"transformer"`` for one with layer norms, else ``"fast-cifar"``.

    Networks of attention, and ConvNeXts, are trained with AdamW; the high rates of SGD make them diverge.
    """
    layer_norms = any(
        isinstance(m, nn.LayerNorm) or type(m).__name__.endswith(("LayerNorm", "RMSNorm")) for m in model.modules()
    )
    return "transformer" if layer_norms else "fast-cifar"
