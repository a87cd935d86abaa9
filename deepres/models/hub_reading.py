"""Folders of the Hugging Face Hub that deepres builds: its own, timm's, and transformers' where deepres wrote the weights.

``config.json`` says which network it is, with its labels and its preparation of images. It is data from a stranger: what it says is checked
before anything is built, and builders are on the allow-list of ``builders``.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepres.adapters import spec_of
from deepres.data import Prepare, Tokens
from deepres.errors import DeepresError, first_line, nearest
from deepres.models.builders import check_config
from deepres.models.checkpoint import header_of, read_checkpoint
from deepres.models.store import from_state, network_from
from deepres.models.weights import Matched
from deepres.nn.resnet import ResNetConfig
from deepres.nn.transformer import TransformerConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
GENERATION = "generation_config.json"  # transformers' settings of generate()
_OLD = "pytorch_model.bin"  # what earlier versions of timm wrote alone
LIBRARY = "deepres"  # `library_name` of a configuration that deepres wrote for itself
OURS: dict[str, tuple[str, type[Any]]] = {"ResNet": ("config", ResNetConfig), "Transformer": ("transformer", TransformerConfig)}
_TIMM = {"num_classes", "in_chans", "global_pool"}  # arguments of timm's networks that deepres keeps itself


def is_hub_folder(folder: str | Path) -> bool:
    """Tell whether ``open_hub_folder`` opens ``folder``: others with a ``config.json`` are transformers' to open.

    Raises ``DeepresError`` for a ``config.json`` that cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        return False
    settings = read_hub_config(folder)
    if settings.get("library_name") == LIBRARY or "pretrained_cfg" in settings:
        return True
    return "origin" in header_of(folder / WEIGHTS)


def read_hub_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``. Raises ``DeepresError`` where it is missing, or no JSON object."""
    if not (folder / CONFIG).exists():
        raise DeepresError(f"{folder}: holds no {CONFIG}, so it is no folder of the Hugging Face Hub")
    return _read_json(folder / CONFIG)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DeepresError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise DeepresError(f"{path}: holds a {type(found).__name__}, not the settings of a network")
    return found


def open_hub_folder(folder: str | Path) -> tuple[nn.Module, dict[str, Any], Matched]:
    """(network in eval mode, notes, report) of a folder for which ``is_hub_folder`` holds.

    Raises ``DeepresError`` for a builder that is not allowed, for arguments of a wrong type, for labels of another number than the outputs,
    for a file that is missing, and for weights that were changed or are another network's.
    """
    folder = Path(folder)
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not weights.is_file() and (folder / _OLD).is_file():
        weights = folder / _OLD
    settings = read_hub_config(folder)
    generation = _read_json(folder / GENERATION) if (folder / GENERATION).is_file() else None
    if not weights.is_file():
        raise DeepresError(f"{folder}: holds a {CONFIG} and no {WEIGHTS}; download or copy the whole folder")
    state, written = read_checkpoint(weights)
    try:
        header = _header_from(settings, written, len(state), generation)
        _check_shapes(header, state)
    except DeepresError as error:
        raise DeepresError(f"{config}: {error}") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:  # of a library's constructor
        raise DeepresError(f"{config}: describes no network that can be built ({first_line(error)})") from error
    noted = written.get("notes")
    model, noted, report = from_state(state, {**header, "notes": noted if isinstance(noted, dict) else {}}, weights)
    try:
        noted = {**noted, **_notes_from(settings, model, noted)}
    except DeepresError as error:
        raise DeepresError(f"{config}: {error}") from error
    return model, noted, report


def _header_from(
    settings: Mapping[str, Any], written: Mapping[str, Any], tensors: int, generation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The header by which ``store`` builds the network that ``config.json`` describes. ``written``: that of the weights."""
    if settings.get("library_name") == LIBRARY:
        named, given = settings.get("architecture"), settings.get("model_args")
        if not isinstance(named, str) or not isinstance(given, Mapping):
            raise DeepresError("has no architecture with model_args, so it is not what deepres wrote")
        if named in OURS:
            key, kind = OURS[named]
            values = _typed(given, kind)
            blocks = values["blocks"]
            if (len(blocks) if key == "transformer" else sum(blocks)) > tensors:
                raise DeepresError(f"describes more blocks than {WEIGHTS} has tensors")
            return {key: values}
        return {"origin": {**given, "reference": named}}
    old = written.get("origin")
    old = old if isinstance(old, Mapping) else {}
    if "pretrained_cfg" in settings:
        return {"origin": _timm_origin(settings)}
    classes = settings.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        raise DeepresError("names no architecture")
    origin = {"reference": f"transformers:{classes[0]}", "config": check_config(settings), "removed": old.get("removed", [])}
    origin["generation"] = generation
    return {"origin": origin, "zeros": written.get("zeros", [])}


def _timm_origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    named, about, given = settings.get("architecture"), settings["pretrained_cfg"], settings.get("model_args", {})
    if not isinstance(named, str) or not isinstance(about, Mapping) or not isinstance(given, Mapping):
        raise DeepresError("has no architecture with pretrained_cfg, so it is not what timm wrote")
    if others := sorted(set(given) - _TIMM):
        raise DeepresError(
            f"builds timm's {named} with {', '.join(others)}, which deepres cannot note; open it with timm itself"
        )
    channels = given.get("in_chans") or next(iter(about.get("input_size") or ()), None)
    return {"reference": f"timm:{named}", "classes": settings.get("num_classes"), "channels": channels, "removed": []}


def _typed(given: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Arguments of the dataclass ``kind``. Raises ``DeepresError`` for an unknown name, a missing one and a value of a wrong type."""
    hints = typing.get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if missing := sorted(required - given.keys()):
        raise DeepresError(f"model_args lack {', '.join(missing)}")
    for name, value in given.items():
        if name not in hints:
            raise DeepresError(f"model_args have no {name!r}{nearest(name, hints)}")
        if not _fits(value, hints[name]):
            raise DeepresError(f"model_args.{name} is {str(value)[:60]!r}, which has the wrong type")
    return dict(given)


def _fits(value: object, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool) and abs(value) < 2**31
    return isinstance(value, hint)


def _check_shapes(header: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises ``DeepresError`` for a network of other sizes than the weights, before memory is taken for it."""
    with torch.device("meta"):
        wanted = network_from({}, header).state_dict()
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise DeepresError(
                f"describes another network than {WEIGHTS} holds: {name} is {tuple(tensor.shape)} and there {tuple(state[name].shape)}"
            )


def _notes_from(settings: Mapping[str, Any], model: nn.Module, noted: Mapping[str, Any]) -> dict[str, Any]:
    """Labels and preparation, as ``config.json`` has them; it may have been edited since the weights were written."""
    spec = spec_of(model)
    found: dict[str, Any] = {}
    if spec.inputs == "images":
        names = settings.get("id2label", settings.get("label_names"))
        labels = _labels(names, settings, spec.classes)
        if labels is not None:
            found["classes"] = labels
    given = settings.get("preprocessing") if settings.get("library_name") == LIBRARY else noted.get("prepare")
    if given is None and isinstance(about := settings.get("pretrained_cfg"), Mapping):
        given = _timm_prepare(about)
    if given is not None:
        found["prepare"] = _prepare(given, spec.channels if spec.inputs == "images" else 0).to_notes()
    return found


def _labels(names: object, settings: Mapping[str, Any], outputs: int | None) -> list[str] | None:
    if isinstance(names, Mapping):
        numbers = [str(i) for i in range(len(names))]
        if sorted(map(str, names)) != sorted(numbers):
            raise DeepresError("id2label does not number its labels from 0")
        names = [names.get(number, names.get(int(number))) for number in numbers]
    if names is None or (isinstance(names, list) and "architectures" in settings and _are_placeholders(names)):
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DeepresError("its labels are not texts")
    if outputs is not None and len(names) != outputs:
        raise DeepresError(f"has {len(names):,} labels, and the network has {outputs:,} outputs")
    return list(names)


def _are_placeholders(names: list[Any]) -> bool:
    return all(name == f"LABEL_{i}" for i, name in enumerate(names))


def _timm_prepare(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The preparation that timm's ``pretrained_cfg`` describes, as far as it does."""
    if not all(about.get(key) for key in ("input_size", "mean", "std")):
        return None
    channels, size = about["input_size"][0], about["input_size"][-1]
    resize = int(size / about["crop_pct"]) if about.get("crop_pct") else 0
    mean, std = (list(v) * channels if len(v) == 1 else v for v in (about["mean"], about["std"]))
    told = {"size": size, "channels": channels, "mean": mean, "std": std, "resize": resize}
    told |= {"squash": True} if about.get("crop_mode") == "squash" else {}
    return {**told, "interpolation": about.get("interpolation") or "bilinear"}


def _prepare(given: object, channels: int | None) -> Prepare:
    """A preparation from plain values. Raises ``DeepresError`` for values that are none, or of other channels than the network's."""
    wrong = "its preprocessing is not one of a network"
    try:
        found = Prepare.from_notes(dict(given))  # type: ignore[call-overload]
        if not all(isinstance(n, int) for n in (found.size, found.channels, found.resize)) or not 0 < found.size < 2**31:
            raise DeepresError(f"{wrong} (size {found.size!r}, resize {found.resize!r}, channels {found.channels!r})")
        if isinstance(found, Tokens):
            good = True
        else:
            mean, std = torch.tensor(found.mean, dtype=torch.float32), torch.tensor(found.std, dtype=torch.float32)
            sizes = ((found.channels,), (found.channels, found.size, found.size))
            good = tuple(mean.shape) in sizes and tuple(std.shape) == sizes[0] and bool((std > 0).all())
            good = good and isinstance(found.interpolation, str) and 0 <= found.resize < 2**31
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeepresError(f"{wrong} ({type(error).__name__}: {error})") from error
    if not good:
        raise DeepresError(f"{wrong} (mean {str(found.mean)[:40]}, deviation {str(found.std)[:40]}, {found.channels} channels)")
    if channels is not None and found.channels != channels:
        raise DeepresError(f"its preprocessing has {found.channels} channels, and the network takes {channels}")
    return found
