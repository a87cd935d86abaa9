"""Points: settings with their error and estimated time, and the Pareto front of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepres.deprecation import renamed_fields
from deepres.ghosting.settings import Settings

_OLD_NAMES = {"left": "exited", "moved": "changed"}  # in files that were saved before


@renamed_fields(**_OLD_NAMES)
@dataclass(frozen=True)
class Point:
    """Settings with what they achieve on the validation split."""

    settings: Settings
    error: float  # %
    time: float  # relative to the whole network, estimated from the blocks that ran and their measured times
    blocks: float  # mean share of blocks that ran
    exited: float  # share of inputs that exited early
    changed: float = 0.0  # share of inputs whose answer became right or became wrong

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Point:
        """The point in a saved file, of this version or of an earlier one."""
        values = {_OLD_NAMES.get(name, name): value for name, value in saved.items()}
        return cls(**{**values, "settings": Settings.from_dict(values["settings"])})


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both error and time, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.error, p.time)):
        if not kept or point.time < kept[-1].time - 1e-9:
            kept.append(point)
    return kept[::-1]
