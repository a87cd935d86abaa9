"""Checkpoint files: read them without running code, and find the network's tensors in what training scripts put around them."""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import json
import pathlib
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepres.errors import DeepresError
from deepres.models.formats import is_safetensors, shards_of

KEY = "deepres"  # of the metadata entry that holds our header
_AVERAGED = ("ema", "averaged", "avg", "swa")  # words in the names of sub-dictionaries that hold averaged weights
_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile, FSDP: anywhere in a name
_DEPTH = 4  # levels of dictionaries, and words of a prefix, that are looked through


def _harmless() -> list[Any]:
    """Types beside tensors that training scripts save. None of them runs code when it is rebuilt."""
    scalars = {np.dtype(code) for code in "?bBhHiIlLqQefdFDSUOMm"}
    core = np.core if not hasattr(np, "_core") else np._core
    return [
        argparse.Namespace,
        collections.OrderedDict,
        collections.defaultdict,
        collections.Counter,
        np.ndarray,
        np.dtype,
        *{type(kind) for kind in scalars},
        core.multiarray.scalar,
        core.multiarray._reconstruct,
        (core.multiarray.scalar, "numpy.core.multiarray.scalar"),
        (core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        pathlib.WindowsPath,
        pathlib.PureWindowsPath,
        datetime.datetime,
        datetime.date,
        datetime.timedelta,
        datetime.timezone,
        types.SimpleNamespace,
        complex,
        range,
        slice,
        frozenset,
        dict,
        list,
        set,
        int,
        float,
        str,
    ]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a checkpoint file, and the header of a file of ours (else an empty dictionary).

    safetensors files, an index of several (``model.safetensors.index.json``), and pickles of tensors, plain values, numpy arrays and
    scalars, times, paths and ``argparse.Namespace``.

    Raises ``DeepresError`` for a file that is missing or truncated, and for a pickle of anything else, which could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise DeepresError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return {name: tensor for shard in shards_of(path) for name, tensor in read_checkpoint(shard)[0].items()}, {}
    if is_safetensors(path):
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_harmless()), open(path, "rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Validating sparse tensor")
            # a file, as of a path torch regards the suffix
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        asked = re.search(r"(?:GLOBAL|class|function) [`']?([\w.]+\.\w+)", str(error))
        if asked or "weights_only" in str(error):
            what = f" ({asked[1]})" if asked else ""
            raise DeepresError(
                f"{path}: this pickle holds more than tensors{what} and loading it could run code, so it is refused; "
                "save its state_dict() alone, best as safetensors"
            ) from error
        raise DeepresError(f"{path}: not a checkpoint that can be read, or truncated ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DeepresError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state, {}


def header_of(path: str | Path) -> dict[str, Any]:
    """The header of a safetensors file of ours, without reading its tensors; empty for any other file, or none."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, ValueError, OSError) as error:
        raise DeepresError(
            f"{path}: not a whole safetensors file ({error}); it may be truncated, so copy or download it again"
        ) from error
    header = header if isinstance(header, dict) else {}
    if "sha256" in header and header["sha256"] != tensors_digest(tensors):
        raise DeepresError(
            f"{path}: its weights were changed after they were written (their checksum differs); get the file again"
        )
    return tensors, header


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


@dataclass(frozen=True)
class Unwrapped:
    """A network's tensors as found in a checkpoint."""

    tensors: dict[str, Tensor]
    place: str = ""  # the sub-dictionary they lay in, such as "state_dict"
    prefix: str = ""  # what was taken off their names, such as "module."
    dropped: tuple[str, ...] = ()  # tensors beside them that belong to no part of the network
    averaged: bool = False  # whether these are averaged weights
    alternatives: tuple[str, ...] = ()  # sub-dictionaries that fit as well and were not taken
    base: str = ""  # what was put in front of their names, such as "bert.": the checkpoint is of this part of the network alone

    def __str__(self) -> str:
        """A sentence on what was taken; empty where the file held the network's tensors and nothing else."""
        said = []
        if self.averaged or self.alternatives:
            kind = "averaged" if self.averaged else "raw"
            beside = f", not those of {' or '.join(self.alternatives)}" if self.alternatives else ""
            said.append(f"took the {kind} weights{f' in {self.place}' if self.place else ''}{beside}")
        if self.base:
            said.append(f"took the weights of the base model, {self.base.rstrip('.')!r} of this network")
        if self.dropped:
            more = f" and {len(self.dropped) - 4} more" if len(self.dropped) > 4 else ""
            said.append(f"left out what is not the network's: {', '.join(self.dropped[:4])}{more}")
        return "; ".join(said)


def unwrap(state: Mapping[str, Any], known: Callable[[str], bool], roots: Callable[[str], bool] | None = None) -> Unwrapped:
    """Find the tensors of a network in a checkpoint: the sub-dictionary and name prefix of which the most names are ``known``.

    Of two that fit alike averaged weights are preferred, then the outermost. ``roots`` tells whether a name's first word is a part
    of the network: tensors for which it is false are dropped. The others stay, known or not, to be reported as unexpected.

    Raises ``DeepresError`` where the checkpoint holds no tensors under names.
    """
    found = []
    for depth, (place, tensors) in enumerate(_dictionaries(state)):
        plain = {_without_segments(name): tensor for name, tensor in tensors.items()}
        prefix, overlap = _best_prefix(plain, known)
        averaged = any(word in place.lower() for word in _AVERAGED) or "n_averaged" in plain
        found.append(((overlap, averaged, -depth), place, prefix, plain, averaged))
    if not found:
        optimizer = any(
            isinstance(one, Mapping) and {"state", "param_groups"} <= one.keys() for one in (state, *state.values())
        )
        what = "holds the state of an optimizer and no network's weights; give the file that has these" if optimizer else ""
        raise DeepresError(f"the checkpoint {what or 'holds no tensors under names, so it is not a state_dict'}")
    score, place, prefix, plain, averaged = max(found, key=lambda one: one[0])
    inside = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    if score[0] == 0 or roots is None:
        kept = inside
    else:
        kept = {name: tensor for name, tensor in inside.items() if known(name) or roots(name)}
    dropped = tuple(name for name in plain if not name.startswith(prefix) or name.removeprefix(prefix) not in kept)
    others = tuple(other[1] or "the file itself" for other in found if other[0][0] == score[0] > 0 and other[1] != place)
    return Unwrapped(kept, place, prefix, dropped, averaged, others)


def _dictionaries(state: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path of keys, tensors) of each dictionary in a checkpoint that holds tensors under names, outermost first."""
    tensors = {name: _plain_tensor(value) for name, value in state.items() if isinstance(name, str) and _is_tensor(value)}
    if tensors:
        yield place, tensors
    if depth < _DEPTH:
        for key, value in state.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from _dictionaries(value, f"{place}.{key}" if place else key, depth + 1)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _plain_tensor(value: Any) -> Tensor:
    """A dense tensor of numbers: quantized, sparse and NumPy's are converted."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    tensor: Tensor = value
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def _without_segments(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _SEGMENTS)


def _best_prefix(tensors: Mapping[str, Tensor], known: Callable[[str], bool]) -> tuple[str, int]:
    """(the prefix whose removal makes the most names known, how many); the shortest of those that do alike."""
    counts: dict[str, int] = {"": 0}
    for name in tensors:
        words = name.split(".")
        for i in range(min(_DEPTH, len(words) - 1) + 1):
            prefix = "".join(f"{word}." for word in words[:i])
            if known(name.removeprefix(prefix)):
                counts[prefix] = counts.get(prefix, 0) + 1
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    return best, counts[best]
