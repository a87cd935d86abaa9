"""The network and the data of a run: freshly initialised, or from weights that the run names and prepared as for these."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.data import Data, Loader, Prepare, Tokens, Vocabulary, open_data
from deepres.data.text import is_text
from deepres.errors import DeepresError
from deepres.models import OpenedModel, has_pretrained, is_ours, notes, open_model, vocabulary_of
from deepres.models.pairing import adapt_head, data_for, data_to_train
from deepres.nn.transformer_zoo import TRANSFORMERS
from deepres.training.recipes import Recipe
from deepres.training.run import Run
from deepres.training.whitening import whiten_first_convolution

WHITENED = 2000  # images whose patches the first convolution may start from


@dataclass(frozen=True, eq=False)
class Opening:
    """Beginning of a run: a network, data prepared for it, and remarks for the user."""

    model: nn.Module
    data: Data
    remarks: tuple[str, ...] = ()


def open_run(run: Run, data: Data | None = None) -> Opening:
    """Open the network and the data that ``run`` names; ``data`` takes the place of the latter.

    A network that has been trained gets images as it was trained on them. Its outputs are matched with the data's classes by name;
    where they do not match, its head starts afresh. Any other network is built for the data and initialised from ``run.seed``.

    Raises ``DeepresError`` where network, data and weights do not fit together.
    """
    torch.manual_seed(run.seed)
    text = data.is_text if data is not None else is_text(run.data)
    if run.tokens is not None and not text:
        raise DeepresError(f"--tokens {run.tokens}: tokens are for texts, and {run.data} is none")
    opened = None if text else _opened_trained(run)
    if opened is None:
        known = data
        if known is None:
            known = open_data(run.data, size=run.size, channels=run.options.get("in_channels"), tokens=training_tokens(run))
        opened = _open_fresh(run, known)
        if not text and opened.spec.channels is not None:
            known = data_to_train(opened, data if data is not None else run.data, size=run.size, known=known)
        if isinstance(run.recipe, Recipe) and run.recipe.whiten and not has_weights(run) and not text:
            whiten_first_convolution(opened.model, next(Loader(known.train, known.prepare, WHITENED).epoch(0)).images)
        return Opening(opened.model, known, opened.remarks)
    prepared = data_to_train(opened, data if data is not None else run.data, size=run.size)
    torch.manual_seed(run.seed)
    opened = adapt_head(opened, prepared.classes)
    return Opening(
        opened.model, prepared, (*opened.remarks, f"images are prepared as {opened.name} was trained: {prepared.prepare}")
    )


def open_given(run: Run, model: nn.Module, data: Data | None = None) -> Opening:
    """The data that ``run`` names, for a network of the caller's, which stays as it is.

    Where the module says how it was trained, images are prepared and labelled accordingly.
    """
    if data is not None:
        return Opening(model, data)
    if not is_text(run.data):
        opened = open_model(model)
        if opened.prepare is not None or (opened.spec.mean is not None and opened.spec.channels is not None):
            paired = data_for(opened, run.data, size=run.size)
            return Opening(model, paired.data, paired.remarks)
    return Opening(
        model, open_data(run.data, size=run.size, channels=run.options.get("in_channels"), tokens=training_tokens(run))
    )


def _opened_trained(run: Run) -> OpenedModel | None:
    """The network with the weights that ``run`` names, as they are; None where it names none, or none with a head."""
    if not has_weights(run):
        return None
    try:
        opened = open_model(run.net, weights=run.init or "none", **_options(run))
    except DeepresError:  # weights without a head, which need one for the data; or a fault, which is raised there
        return None
    return None if opened.fresh_head else opened


def _options(run: Run) -> dict[str, Any]:
    ours = is_ours(run.net) and run.net not in TRANSFORMERS
    return {**run.options, **({"width": run.width} if ours else {})}


def _open_fresh(run: Run, data: Data) -> OpenedModel:
    """The network built for ``data``, from ``run.seed`` or from weights to which it gives a head.

    Raises ``DeepresError`` where network, data and weights do not fit together.
    """
    ours = is_ours(run.net)
    if ours and data.is_text and run.net not in TRANSFORMERS:
        raise DeepresError(f"{run.net}: takes images and {data.name} is a text; give a language model, such as hf:FOLDER")
    options = _options(run)
    if run.width != 1 and "width" not in options:
        raise DeepresError(f"{run.net}: --width multiplies the channels of residual networks of our own; leave it out")
    if ours and run.net in TRANSFORMERS:
        options = {**_shape_for(data, run.net), **options}
    if isinstance(data.prepare, Tokens):
        _check_vocabulary(run, data.prepare.vocabulary)
    classes, channels = len(data.classes), data.prepare.channels or None
    shape: dict[str, Any] = {"classes": classes, "channels": channels, "new_head": not data.is_text}
    try:
        opened = open_model(run.net, weights=run.init or "none", **shape, **options)
    except DeepresError as error:
        if run.init != "pretrained":
            raise
        raise DeepresError(f"{error}; or start without them: --init none") from error
    if opened.spec.classes not in (None, classes):
        what = "tokens" if data.is_text else "classes"
        raise DeepresError(f"{run.net}: has {opened.spec.classes} {what} and {data.name} has {classes}")
    if not data.is_text:
        opened.need_size(data.prepare.size)
    longest = opened.spec.longest
    if data.is_text and longest is not None and longest < data.prepare.size:
        raise DeepresError(f"{run.net}: reads at most {longest} tokens at a time; give --size {longest} or less")
    return opened


def has_weights(run: Run) -> bool:
    """Tell whether a run starts from trained weights."""
    return run.init not in (None, "none") or run.net.startswith("hf:") or Path(run.net).exists()


def starting_weights(run: Run) -> str | None:
    """The weights that a run starts from: ``run.init``, or for the recipe ``finetune`` the network's pretrained ones, where it has some."""
    unchanged = run.width == 1 and set(run.options) <= {"dropout", "survival", "zero_init"}
    recipe = run.recipe if isinstance(run.recipe, str) else run.recipe.name
    if run.init is None and recipe == "finetune" and unchanged and has_pretrained(run.net):
        return "pretrained"
    return run.init


def training_tokens(run: Run) -> str | Vocabulary | None:
    """By which tokens a text is read: as ``run`` says, else as the weights that it starts from; None for the usual."""
    return run.tokens or vocabulary_of(_source(run))


def _source(run: Run) -> str:
    return run.net if run.init in (None, "none", "pretrained") else run.init


def _check_vocabulary(run: Run, vocabulary: Vocabulary | None) -> None:
    source = _source(run)
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


def prepared_as_before(data: Data, weights: Path) -> Data:
    """``data`` prepared as the ``weights`` of a run say that is resumed; an earlier version may have prepared them otherwise."""
    noted = notes(weights).get("prepare") if weights.exists() else None
    before = Prepare.from_notes(noted) if noted else None
    if before is None or data.is_text or (before.size, before.channels) != (data.prepare.size, data.prepare.channels):
        return data
    return dataclasses.replace(data, prepare=before)


def usual_recipe(model: nn.Module) -> str:
    """Name of the recipe that a network trains well by: ``"transformer"`` for one with layer norms, else ``"fast-cifar"``.

    Networks of attention, and ConvNeXts, are trained with AdamW; the high rates of SGD make them diverge.
    """
    layer_norms = any(
        isinstance(m, nn.LayerNorm) or type(m).__name__.endswith(("LayerNorm", "RMSNorm")) for m in model.modules()
    )
    return "transformer" if layer_norms else "fast-cifar"
