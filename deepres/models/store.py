"""Networks on disk: safetensors with the configuration inside, so ``load(path)`` needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.models.build import Origin, origin, to_json
from deepres.models.weights import infer_config, load_weights
from deepres.nn import zoo
from deepres.nn.resnet import ResNet, ResNetConfig

_KEY = "deepres"  # of the metadata entry


def save(model: nn.Module, path: str | Path, **notes: Any) -> Path:
    """Write weights, configuration and ``notes`` (plain values, such as the class names) as one safetensors file.

    Of another library's network the file says how it was built, where that is known (see ``open_model``); else it holds the
    tensors alone, under their own names. It appears whole or not at all: it is written beside its place and moved there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    built: dict[str, Any] = {}
    if isinstance(model, ResNet):
        built = {"config": dataclasses.asdict(model.config)}
    elif (noted := origin(model)) is not None:
        built = {"origin": to_json(noted)}
    header = json.dumps({**built, "notes": notes})
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():  # tied weights are kept once
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, name, metadata={_KEY: header})
        os.chmod(name, 0o644)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except (OSError, SafetensorError) as error:
        raise DeepresError(f"{path}: could not be written ({error}); what stood there before is untouched") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint file, and our header if it has one (else an empty dictionary).

    safetensors files, and anything that ``torch.load(weights_only=True)`` takes. A pickle that would run code is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise DeepresError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (no mapping)
        except (SafetensorError, ValueError, OSError) as error:
            raise DeepresError(
                f"{path}: not a whole safetensors file ({error}); it may be truncated, so copy or download it again"
            ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        reason = str(error)
        if "weights_only" in reason or "Unsupported" in reason or "GLOBAL" in reason:
            raise DeepresError(
                f"{path}: this pickle holds more than tensors and loading it could run code, so it is refused; "
                "save its state_dict() alone, best as safetensors"
            ) from error
        raise DeepresError(f"{path}: not a checkpoint that can be read, or truncated ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DeepresError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state, {}


def locate(path: str | Path) -> Path:
    """The weights file that ``path`` names: itself, or the best (else the last) of a run's folder."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise DeepresError(f"{path}: the folder holds no best.safetensors or last.safetensors, so no finished run")
    return path


def notes(path: str | Path) -> dict[str, Any]:
    """What was noted with the weights when they were saved: class names, how to prepare images, ..."""
    return read(locate(path))[1].get("notes", {})


def load(path: str | Path, net: str | None = None, **options: Any) -> Any:
    """A network from a run's folder, from a file of ours, or from another's checkpoint; in eval mode.

    A ``ResNet``, or the ``torch.nn.Module`` of another library that ``save`` was given. Ours carry their configuration. For
    others' it is read off the tensors, or comes from ``net`` and ``options`` as in ``create``.

    Raises ``DeepresError`` for a file that is missing, truncated, unsafe or of another network.
    """
    path = locate(path)
    tensors, header = read(path)
    try:
        if "origin" in header:
            other = Origin(**header["origin"]).build()
            missing, unexpected = other.load_state_dict(tensors, strict=False)
            tied = set(getattr(other, "_tied_weights_keys", None) or ())
            if unexpected or set(missing) - tied:
                raise DeepresError(f"the weights are of another network: {[*unexpected, *missing][:4]} do not fit")
            return other.eval()
        if net is not None:
            model = zoo.create(net, **options)
        elif "config" in header:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()}
            model = ResNet(ResNetConfig(**{**values, **options}))
        else:
            model = ResNet(dataclasses.replace(infer_config(tensors), **options))
        load_weights(model, tensors)
    except (DeepresError, KeyError, TypeError) as error:
        reason = error if isinstance(error, DeepresError) else f"its header is not one that deepres wrote ({error})"
        raise DeepresError(f"{path}: {reason}") from error
    return model.eval()
