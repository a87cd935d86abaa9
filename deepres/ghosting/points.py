"""Points: settings with their error and estimated time, and the Pareto front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepres.ghosting.settings import Settings


@dataclass(frozen=True)
class Point:
    """One setting on the validation split."""

    settings: Settings
    error: float  # %
    time: float  # of the whole network's, estimated from the blocks that ran and their measured times
    blocks: float  # mean share of blocks that ran
    left: float  # share of inputs that exited early
    moved: float = 0.0  # share of inputs whose answer became right or became wrong


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both error and time, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.error, p.time)):
        if not kept or point.time < kept[-1].time - 1e-9:
            kept.append(point)
    return kept[::-1]
