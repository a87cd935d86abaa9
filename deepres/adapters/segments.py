"""Segments: runs of consecutive blocks, between which a ghost routes its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepres.adapters.blocks import Block
from deepres.deprecation import renamed_fields


@renamed_fields(units="blocks")
@dataclass(frozen=True, eq=False)
class Segment:
    """A run of consecutive blocks, by index. A ghost has a gate in front of it and an exit head behind it."""

    blocks: tuple[int, ...]
    skippable: tuple[int, ...]  # those of ``blocks`` that can be bypassed


def segments(blocks: Sequence[Block], most: int = 5) -> list[Segment]:
    """Divide each list of blocks into segments of nearly equal length, at most ``most`` blocks each."""
    groups: list[list[int]] = []
    before = None
    for i, block in enumerate(blocks):
        here = block.container
        if here != before:
            groups.append([])
        groups[-1].append(i)
        before = here
    cut = []
    for group in groups:
        parts = -(-len(group) // most)
        bounds = [len(group) * part // parts for part in range(parts + 1)]
        cut += [group[a:b] for a, b in pairwise(bounds)]
    return [Segment(tuple(group), tuple(i for i in group if not blocks[i].reshapes)) for group in cut]
