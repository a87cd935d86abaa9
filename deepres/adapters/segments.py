"""Stretches of blocks, between which a ghost decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepres.adapters.blocks import Block


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive blocks: a ghost has one gate in front of them and one exit behind."""

    units: tuple[int, ...]
    skippable: tuple[int, ...]  # of them, those that can be passed through


def segments(units: Sequence[Block], most: int = 5) -> list[Segment]:
    """Cut each list of blocks into runs of at most ``most``."""
    groups: list[list[int]] = []
    before = None
    for i, unit in enumerate(units):
        here = unit.container
        if here != before:
            groups.append([])
        groups[-1].append(i)
        before = here
    cut = []
    for group in groups:
        parts = -(-len(group) // most)
        bounds = [len(group) * part // parts for part in range(parts + 1)]
        cut += [group[a:b] for a, b in pairwise(bounds)]
    return [Segment(tuple(group), tuple(i for i in group if not units[i].reshapes)) for group in cut]
