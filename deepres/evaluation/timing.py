"""Two networks' times, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def time_against(
    whole: Callable[[Tensor], object], other: Callable[[Tensor], object], inputs: Tensor, batch: int, *, turns: int = 7
) -> tuple[float, tuple[float, float]]:
    """Time of ``other`` against ``whole`` on the same inputs in batches of ``batch``, taking turns.

    The median of the turns' ratios, and their middle half: the two sides of a turn are seconds apart and meet the same machine,
    while the fastest turns of each may lie minutes apart, and on a shared machine one of them may be luck.
    """
    pieces = inputs.split(batch)
    wait = torch.cuda.synchronize if inputs.is_cuda else (lambda: None)
    calls = (whole, other)
    seconds: tuple[list[float], list[float]] = ([], [])
    for call in calls:  # warm up
        for piece in pieces[:2]:
            call(piece)
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            wait()
            began = time.perf_counter()
            for piece in pieces:
                calls[which](piece)
            wait()
            seconds[which].append(time.perf_counter() - began)
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), (ratios[quarter], ratios[-1 - quarter])
