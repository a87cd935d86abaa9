"""A search for the fewest blocks with which the error, after training, has risen by no more than is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Attempt:
    """One run of a search."""

    blocks: int  # that remained
    rise: float  # of the validation error in points, or of the validation loss in nats, above the given network's


def fewest_blocks(
    least: int, most: int, make: Callable[[int], tuple[_Made, float]], allowed: float
) -> tuple[_Made | None, list[Attempt]]:
    """Bisect the numbers ``least`` to ``most`` of remaining blocks.

    ``make`` makes the network with as many blocks and measures its rise. Returns the network with the fewest blocks whose rise is at
    most ``allowed``, or None where there is none, and all attempts in their order. The search assumes that the rise does not fall when
    more blocks are removed. Where noise breaks this, what is returned is still within ``allowed``, but a smaller network may be missed.
    There are at most ``log2(most - least + 1) + 1`` attempts.
    """
    best: _Made | None = None
    attempts: list[Attempt] = []
    while least <= most:
        blocks = (least + most) // 2
        made, rise = make(blocks)
        attempts.append(Attempt(blocks, rise))
        if rise <= allowed:
            best, most = made, blocks - 1
        else:
            least = blocks + 1
    return best, attempts
