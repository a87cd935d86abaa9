"""Stretches of blocks, what separates them, and what is read of the signal there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.sites.units import Unit


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive blocks: a ghost has one gate in front of them and one exit behind."""

    units: tuple[int, ...]
    skippable: tuple[int, ...]  # of them, those that can be passed through


def chunks(units: Sequence[Unit], most: int = 5) -> list[Chunk]:
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
    return [Chunk(tuple(group), tuple(i for i in group if not units[i].reshapes)) for group in cut]


def pooled(signal: Tensor) -> Tensor:
    """(N, C): the mean over places of (N, C, H, W), or over tokens of (N, L, C)."""
    return signal.mean((2, 3)) if signal.ndim == 4 else signal.mean(1)


def pooled_by_quarter(signal: Tensor) -> Tensor:
    """(N, 4 C): the means over the quarters of (N, C, H, W); of (N, L, C) the mean over tokens and the first token, (N, 2 C)."""
    if signal.ndim == 4:
        high, wide = signal.shape[2:]
        if high % 2 or wide % 2:
            return F.adaptive_avg_pool2d(signal, 2).flatten(1)
        return F.avg_pool2d(signal, (high // 2, wide // 2)).flatten(1)  # the same, and up to twice as fast
    return torch.cat([signal.mean(1), signal[:, 0]], 1)
