"""Networks on disk: safetensors with the configuration inside, so that the file alone is enough to load one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deepres.adapters import unwrapped
from deepres.errors import DeepresError, nearest
from deepres.models.builders import Origin, allow_builder, origin, to_json
from deepres.models.checkpoint import KEY, read_checkpoint, tensors_digest
from deepres.models.formats import describe_folder
from deepres.models.names import infer_config
from deepres.models.weights import Matched, load_weights
from deepres.nn import zoo
from deepres.nn.resnet import ResNet, ResNetConfig
from deepres.nn.transformer import Transformer, TransformerConfig
from deepres.paths import user_path

_FILES = (
    *("best.safetensors", "last.safetensors", "net.safetensors", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
GHOST_FILE = "ghost.safetensors"  # beside a network's file: the gates and early exits of a ghost of it


def save(model: nn.Module, path: str | Path, **notes: Any) -> Path:
    """Write weights, configuration and ``notes`` (plain values, such as the class names) as one safetensors file.

    Of another library's network the file says how it was built, where that is known (see ``open_model``); else it holds the
    tensors alone, under their own names. The file appears whole or not at all: it is written beside its place and moved there. Another
    library's network of which blocks were deleted is loaded again before it is moved.

    Raises ``DeepresError`` where the file cannot be written, and where the network cannot be built again from it.
    """
    return write_network(user_path(path), unwrapped(model), notes)


def write_network(
    path: Path, model: nn.Module, notes: Mapping[str, Any], *, zeros: Mapping[str, Tensor] | None = None, checksum: bool = False
) -> Path:
    """Write the file of ``save``. With a ``checksum`` of its tensors, a changed file is refused when it is read.

    ``zeros``: tensors that ``model`` does not have and another library needs; reading leaves them out.
    """
    noted = None if isinstance(model, ResNet | Transformer) else origin(model)
    header: dict[str, Any] = {**description(model), "notes": notes}
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():  # tied weights are kept once
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    if noted is not None:
        _check_rebuilt(json.loads(json.dumps(to_json(noted))), model, path)
    if zeros:
        header["zeros"] = sorted(zeros)
        tensors.update(zeros)
    if checksum:
        header["sha256"] = tensors_digest(tensors)
    return write_tensors(path, tensors, json.dumps(header))


def description(model: nn.Module) -> dict[str, Any]:
    """Describe how ``model`` is built: ``config`` or ``transformer`` of a network of ours, ``origin`` of another's; empty if unknown."""
    if isinstance(model, ResNet):
        return {"config": dataclasses.asdict(model.config)}
    if isinstance(model, Transformer):
        return {"transformer": dataclasses.asdict(model.config)}
    noted = origin(model)
    return {"origin": to_json(noted)} if noted is not None else {}


def write_tensors(path: Path, tensors: dict[str, Tensor], header: str, key: str = KEY) -> Path:
    """Write ``tensors`` as a safetensors file with a JSON ``header`` under ``key``, whole or not at all.

    Raises ``DeepresError`` where it cannot be written.
    """
    name = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(handle).st_mode & 0o777  # as the umask makes it; save_file has a mode of its own
        os.close(handle)
        save_file(tensors, name, metadata={key: header, "format": "pt"})  # transformers asks for the format
        os.chmod(name, mode)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except (OSError, SafetensorError) as error:
        raise DeepresError(f"{path}: could not be written ({error}); what stood there before is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
    return path


def _check_rebuilt(header: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Raises ``DeepresError`` where what the header says builds a network of other tensors than ``model``'s."""
    if not header["removed"] and not header["reference"].startswith("transformers:"):
        return  # nothing was changed since it was built
    allow_builder(header["reference"])  # the caller holds a network that it built
    with torch.device("meta"):  # names and shapes are enough
        again = Origin.from_header(header).build().state_dict()
    ours = model.state_dict()
    wrong = sorted({*again} ^ {*ours}) or [name for name, tensor in again.items() if tensor.shape != ours[name].shape]
    if wrong:
        raise DeepresError(
            f"{path}: not written, as the network could not be loaded from it again: {', '.join(wrong[:4])} differ"
        )


def locate(path: str | Path) -> Path:
    """The weights file that ``path`` names: itself, or the best (else the last) of a run's folder, or that of a folder for the Hub."""
    path = user_path(path)
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
        raise DeepresError(f"{path}: the folder {describe_folder(path)}")
    return path


def notes(path: str | Path) -> dict[str, Any]:
    """The notes that were saved with the weights: class names, how to prepare images, ..."""
    found = read_checkpoint(locate(path))[1].get("notes", {})
    return found if isinstance(found, dict) else {}


def from_file(path: Path, net: str | None = None, **options: Any) -> tuple[nn.Module, dict[str, Any], Matched]:
    """(network, notes, report) of a file of ours, or of another's checkpoint of a network that deepres has too.

    ``net``, the name of a network of ours, and ``options`` say which network where the file does not.

    Raises ``DeepresError`` for a file that is missing, truncated, unsafe or of another network.
    """
    state, header = read_checkpoint(path)
    return from_state(state, header, path, net, **options)


def from_state(
    state: dict[str, Tensor], header: dict[str, Any], path: Path, net: str | None = None, **options: Any
) -> tuple[nn.Module, dict[str, Any], Matched]:
    """``from_file``, of what ``read_checkpoint`` gives; ``path`` is named in errors."""
    try:
        model = network_from(state, header, net, options)
        state = {name: tensor for name, tensor in state.items() if name not in header.get("zeros", ())}
        report = load_weights(model, state)
    except (DeepresError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, DeepresError) else f"its header is not one that deepres wrote ({error})"
        raise DeepresError(f"{path}: {reason}") from error
    noted = header.get("notes", {})
    return model.eval(), noted if isinstance(noted, dict) else {}, report


def network_from(
    state: Mapping[str, Tensor],
    header: Mapping[str, Any],
    net: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network, freshly initialised, that a header describes, or else the name ``net``, or else the tensors of a ``state``.

    Raises ``DeepresError`` for ``options`` that the network does not have.
    """
    options = options or {}
    if "detector" in header:
        raise DeepresError(
            "holds a detector, which `deepres detect` evaluates, uses, looks at and shrinks; it has no ghost, since the answer for "
            "every region needs the last feature maps"
        )
    if "origin" in header:
        found = Origin.from_header(header["origin"])
        if idle := sorted(options.keys() - {"num_classes", "in_channels"}):  # of these the weights tell
            raise DeepresError(f"holds {found.reference}, which takes no option {idle[0]!r}; leave it out")
        return found.build()
    if net is not None:
        return zoo.create(net, **options)
    if "transformer" in header:
        return Transformer(_configured(TransformerConfig, header["transformer"], options))
    values = header["config"] if "config" in header else dataclasses.asdict(infer_config(state))
    return ResNet(_configured(ResNetConfig, values, options))


def _configured(kind: type[Any], values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """The configuration ``kind`` with the ``values`` of a header, of which ``options`` replace some."""
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(options.keys() - known):
        raise DeepresError(f"its network takes no option {unknown[0]!r}{nearest(unknown[0], known)}")
    return kind(**{**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}, **options})
