"""Trainings that are recorded one by one, so that a table of them may grow over many sittings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import BF16, machine
from deepres.training import Result

FUSED_SPEED = "bf16-fused-compiled" if BF16 else "float32-fused"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The trainings recorded so far."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def is_recorded(file: Path, key: Mapping[str, Any]) -> bool:
    """Whether a training that agrees with ``key`` is there, so that it is not trained again."""
    return any(all(row[name] == value for name, value in key.items()) for row in read_rows(file))


def told_of(result: Result) -> dict[str, Any]:
    """What every row tells of its training: errors in percent, how it was computed and where."""
    return {
        "test_error": round(result.test.top1, 2),
        "val_error": round(result.val_error, 2),
        "train_error": round(result.history[-1].train_error, 2),
        "mode": result.speed,
        "machine": machine(),
    }
