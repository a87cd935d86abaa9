"""Checkpoints of a run: atomic, the last few kept, read back only if whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deepres.errors import DeepresError

FOLDER = "checkpoints"


def write(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then drop all but the last ``keep``.

    The file gets its name only once all of it is on the disk. If the disk is full, ``DeepresError`` is raised and the
    previous checkpoint is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:09d}.pt"
    part = path.with_suffix(".part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        part.unlink(missing_ok=True)
        last = newest(folder)
        kept = f"the previous one, {last.name}, is whole" if last else "there is none before it"
        raise DeepresError(
            f"{path}: the checkpoint could not be written ({error}); {kept}; free some disk and resume"
        ) from error
    for old in sorted(folder.glob("*.pt"))[:-keep]:
        old.unlink()
    return path


def newest(folder: Path) -> Path | None:
    return max(folder.glob("*.pt"), default=None)


def read_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None where there is none. What cannot be read is passed over."""
    for path in sorted(folder.glob("*.pt"), reverse=True):
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception:
            continue
        if isinstance(state, dict) and {"model", "optimizer", "progress"} <= state.keys():
            return state
    return None
