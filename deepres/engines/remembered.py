"""Choices of engines that were measured before, kept in the cache folder: measuring takes minutes, and the machine stays the same."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.engines.optimized import Candidate
from deepres.engines.source import Source, add_tensor
from deepres.evaluation import processor_name
from deepres.ghosting import Ghost
from deepres.paths import cache_folder

_FILE = "measured.json"
VERSIONS = ("deepres", "torch", "torchao", "openvino", "onnx", "onnxscript", "onnxruntime", "nncf", "torch_tensorrt")


def key_of(source: Source, images: Tensor, *asked: object) -> str:
    """A name for a network with its weights, these images, this machine, the installed versions and what was asked for."""
    digest, model = hashlib.sha256(), source.model
    for value in (repr(model), source.weights, _of_a_ghost(model), _machine(images.device), _versions(), asked):
        digest.update(repr(value).encode())
    add_tensor(digest, "images", images)
    return digest.hexdigest()[:32]


def _of_a_ghost(model: nn.Module) -> tuple[object, ...]:
    """What a ghost computes by besides its weights."""
    return (model.settings, model.temperature) if isinstance(model, Ghost) else ()


def _machine(device: torch.device) -> tuple[object, ...]:
    """The processor, and the device that the network is on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    features = (
        torch.backends.cpu.get_cpu_capability(),
        torch.cpu._is_avx512_bf16_supported(),
        torch.cpu._is_amx_tile_supported(),
    )
    return processor_name(), features, torch.get_num_threads(), device.type, gpu


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def recall(key: str) -> tuple[Candidate, ...]:
    """Return the measurements stored under ``key``; empty if there are none or if the file is incomplete."""
    try:
        rows = json.loads((folder_of(key) / _FILE).read_text())
        return tuple(Candidate(**{**row, "level": tuple(row["level"])}) for row in rows)
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def remember(key: str, candidates: Sequence[Candidate]) -> None:
    """Keep what was measured. A cache folder that cannot be written is no error: the next call measures again."""
    folder = folder_of(key)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{_FILE}.{os.getpid()}"
        try:
            part.write_text(json.dumps([dataclasses.asdict(one) for one in candidates]))
            os.replace(part, folder / _FILE)
        finally:
            part.unlink(missing_ok=True)


def folder_of(key: str) -> Path:
    """Folder of what is kept under ``key``."""
    return cache_folder() / "engines" / key
