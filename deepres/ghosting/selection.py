"""Selection of settings by measured time."""

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

Measure = Callable[[Ghost, Tensor, int], tuple[float, tuple[float, float]]]


def time_against_whole(ghost: Ghost, inputs: Tensor, batch: int) -> tuple[float, tuple[float, float]]:
    """Time of a call of ``ghost`` relative to its network, called directly: (median ratio, quartiles), as of ``time_against``."""

    def whole(x: Tensor) -> object:
        ghost.route(False)
        return ghost.net(x)

    return time_against(whole, ghost, inputs, batch)


def within_budget(
    ghost: Ghost, points: Sequence[Point], budget: float, inputs: Tensor, batch: int, log: Callable[[str], None]
) -> Point:
    """Select the point of lowest error whose *measured* time at this batch size is within ``budget``, and set its settings.

    Raises ``DeepresError`` if there is none.
    """
    least = math.inf
    for point in sorted(pareto_front(points), key=lambda p: p.error):
        if point.time > 1.05 * budget:
            continue
        ghost.settings = point.settings
        ratio, _ = time_against_whole(ghost, inputs, batch)
        log(f"{point.settings.describe()}: estimated {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if ratio <= budget:
            return point
        least = min(least, ratio)
    ghost.settings = Settings()
    why = (
        f"its fastest settings take {100 * least:.0f} % of the whole network's time"
        if least < math.inf
        else f"its fastest settings are estimated to take {100 * min(p.time for p in points):.0f} % of the whole network's time"
    )
    raise DeepresError(f"a budget of {budget:g} cannot be kept at batch {batch}: {why}; give a larger one")


@torch.no_grad()
def keeps_deadline(ghost: Ghost, inputs: Tensor, batch: int, *, calls: int = 100) -> tuple[float, float]:
    """Time ``calls`` calls at this batch size: (share of them within ``ghost.deadline``, seconds of the slowest)."""
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
    measure: Measure = time_against_whole,
) -> Point:
    """Select the candidate of least *measured* time at this batch size, and set its settings.

    Candidates whose upper quartile of the ratios is not below 1 are passed over, because a median below 1 can be chance. If none
    remains, ``whole`` is selected.
    """
    chosen, least = whole, 1.0
    for point in candidates:
        ghost.settings = point.settings
        ratio, (_, high) = measure(ghost, inputs, batch)
        log(f"{point.settings.describe()}: estimated {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if high < 1 and ratio < least:
            chosen, least = point, ratio
    ghost.settings = chosen.settings
    return chosen
