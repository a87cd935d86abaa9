"""Selection of settings by their measured time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.evaluation import time_against
from deepres.evaluation.timing import call_times
from deepres.ghosting.model import Ghost
from deepres.ghosting.points import Point, pareto_front
from deepres.ghosting.settings import Settings


def time_against_whole(ghost: Ghost, inputs: Tensor, batch: int) -> tuple[float, tuple[float, float]]:
    """``time_against`` its own network, called straight; gates, exits and gathers are in the ghost's time."""

    def whole(x: Tensor) -> object:
        ghost.route(False)
        return ghost.net(x)

    return time_against(whole, ghost, inputs, batch)


def within_budget(
    ghost: Ghost, points: Sequence[Point], budget: float, inputs: Tensor, batch: int, log: Callable[[str], None]
) -> Point:
    """The point of least error whose *measured* time at this batch is within ``budget``; also sets it.

    Raises ``DeepresError`` where none is, with the figure of the fastest.
    """
    fastest = math.inf
    for point in sorted(pareto_front(points), key=lambda p: p.error):
        if point.time > 1.05 * budget:
            continue
        ghost.settings = point.settings
        ratio, _ = time_against_whole(ghost, inputs, batch)
        log(f"{point.settings.describe()}: estimated {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if ratio <= budget:
            return point
        fastest = min(fastest, ratio)
    ghost.settings = Settings()
    why = (
        f"the fastest of its settings takes {100 * fastest:.0f} % of the whole network's time"
        if fastest < math.inf
        else f"computing as little as it can leaves {100 * min(p.time for p in points):.0f} % of the whole network's time"
    )
    raise DeepresError(f"a budget of {budget:g} cannot be kept at batch {batch}: {why}; allow more")


@torch.no_grad()
def keeps_deadline(ghost: Ghost, inputs: Tensor, batch: int, *, calls: int = 100) -> tuple[float, float]:
    """(share of calls within ``ghost.deadline``, the slowest call's seconds), over ``calls`` calls at this batch."""
    assert ghost.deadline is not None
    pieces = itertools.cycle(piece for piece in inputs.split(batch) if len(piece) == batch)
    took = call_times(lambda: ghost(next(pieces)), inputs.device, repeats=calls, warmup=3)
    return sum(t <= ghost.deadline for t in took) / len(took), max(took)


def fastest(
    ghost: Ghost,
    candidates: Sequence[Point],
    whole: Point,
    inputs: Tensor,
    batch: int,
    log: Callable[[str], None] = lambda text: None,
) -> Point:
    """The candidate whose *measured* time at this batch is the least; also sets it.

    It is ``whole`` if none is faster in all but a quarter of the turns: a time that is below 1 by luck is above it elsewhere.
    """
    chosen, least = whole, 1.0
    for point in candidates:
        ghost.settings = point.settings
        ratio, (_, high) = time_against_whole(ghost, inputs, batch)
        log(f"{point.settings.describe()}: estimated {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if high < 1 and ratio < least:
            chosen, least = point, ratio
    ghost.settings = chosen.settings
    return chosen
