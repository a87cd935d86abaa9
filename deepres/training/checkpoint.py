"""Checkpoints of a run: what they hold; written atomically, the last few kept, read back only if whole."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepres.data import difference
from deepres.errors import DeepresError, first_line
from deepres.training.progress import Progress

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer

FOLDER = "checkpoints"
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything that a run needs to go on as if it had not stopped."""
    states = {callback.name: callback.state() for callback in trainer.callbacks}
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "averaged": trainer.averaged.state_dict() if trainer.averaged is not None else None,
        "progress": dataclasses.asdict(trainer.progress),
        "speed": trainer.speed.name,
        "data": _data(trainer),
        "examples": trainer.examples,
        "callbacks": {name: state for name, state in states.items() if state is not None},
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Bring ``trainer`` to ``state``: first its callbacks, which may change the network's shape, then the weights.

    Raises ``DeepresError`` where the data or the network are not those of the checkpoint.
    """
    before, now = state.get("data"), _data(trainer)
    if before is not None and before != now:
        what = ", ".join(f"{key}: {before[key]} then, {now[key]} now" for key in now if before[key] != now[key])
        raise DeepresError(
            f"{trainer.run.data}: the data have changed since the run in {trainer.out} began ({what}); a run goes on with the same "
            "data only: train anew into another --out, from this run's weights with --init if they fit"
        )
    if "examples" in state and (what := difference(state["examples"], trainer.examples, trainer.data)):
        raise DeepresError(
            f"{trainer.run.data}: the data have changed since the run in {trainer.out} began ({what}); put them back, or train anew into "
            "another --out, from this run's weights with --init"
        )
    try:
        _restore_callbacks(trainer, state)
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.averaged is not None:
            trainer.averaged.load_state_dict(state["averaged"])
        trainer.progress = Progress(**state["progress"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DeepresError(f"{trainer.out}: the checkpoint there is of another run ({first_line(error)})") from error


def _restore_callbacks(trainer: Trainer, state: dict[str, Any]) -> None:
    states = dict(state.get("callbacks") or {})
    if state.get("curriculum") is not None:  # written before several callbacks could keep a state
        states = {callback.name: state["curriculum"] for callback in trainer.callbacks if callback.keeps_state}
    for callback in trainer.callbacks:
        if callback.name in states:
            callback.restore(trainer, states.pop(callback.name))
    if states:
        warnings.warn(
            f"{trainer.out}: the checkpoint holds states of callbacks that are not given: {', '.join(states)}", stacklevel=2
        )


def _data(trainer: Trainer) -> dict[str, Any]:
    """What must not change between a run and its resume."""
    data = trainer.data
    return {
        "classes": ", ".join(data.classes),
        **{f"{name} examples": len(getattr(data, split)) for split, name in _SPLITS.items()},
    }


def write(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then drop all but the last ``keep``, and those of later steps.

    Later ones are damaged: the run passed over them when it resumed. The file gets its name only once all of it is on the disk. If the
    disk is full, ``DeepresError`` is raised and the previous checkpoint is still there.
    """
    path = folder / f"{step:09d}.pt"
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    found = sorted(folder.glob("*.pt"))
    end = found.index(path) + 1
    for old in (*found[: max(end - keep, 0)], *found[end:]):
        old.unlink()
    return path


def newest(folder: Path) -> Path | None:
    return max(folder.glob("*.pt"), default=None)


def read_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None where there is none. Damaged ones are passed over.

    Raises ``PermissionError`` and ``torch.OutOfMemoryError``, which say nothing of the file.
    """
    for path in sorted(folder.glob("*.pt"), reverse=True):
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except (PermissionError, torch.OutOfMemoryError):
            raise
        except Exception:
            continue
        if isinstance(state, dict) and {"model", "optimizer", "progress"} <= state.keys():
            return state
    return None
