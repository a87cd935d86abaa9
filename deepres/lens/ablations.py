"""Ablations: the error when branches are left out or blocks exchange places (the lesions of Veit et al. 2016, sections 4.1 and 4.2)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from deepres.adapters import Site
from deepres.lens.sample import Sample

NORMAL_95 = 1.96  # standard deviations on each side of the mean that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Ablation:
    """The error with branches left out, and its change, on the same examples. Errors in percent."""

    what: tuple[str, ...]  # names of the sites left out
    error: float
    change: float  # in points; positive is worse
    low: float  # 95 % interval of the change
    high: float


@dataclass(frozen=True)
class Deletion:
    """The error with ``count`` random blocks left out, and with as many random pairs of blocks in exchanged places."""

    count: int
    error: float  # mean over the draws, %
    spread: float  # standard deviation over the draws
    swapped: float | None  # None where the network has no two blocks that fit into each other's places


def interval(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """The change of the error and the ends of its 95 % interval, points, from truth values (N,) of the same answers.

    The interval is for paired samples (Agresti and Min 2005): half an example is added to each kind of change, so that even
    without any change among n examples it is about 2/n wide.
    """
    n = len(before)
    worse, better = int((before & ~after).sum()), int((~before & after).sum())
    total, b, c = n + 2, worse + 0.5, better + 0.5
    middle = (b - c) / total
    half = NORMAL_95 * math.sqrt(max((b + c) - (b - c) ** 2 / total, 0)) / total
    return 100 * (worse - better) / n, 100 * (middle - half), 100 * (middle + half)


def _ablation(names: Sequence[str], whole: Tensor, now: Tensor) -> Ablation:
    change, low, high = interval(whole, now)
    return Ablation(tuple(names), 100 * (1 - float(now.float().mean())), change, low, high)


def bypassed(model: nn.Module, sample: Sample, whole: Tensor, without: Sequence[Site]) -> Ablation:
    """The ablation of the branches of ``without``. ``whole``: the truth values of the whole network's answers."""
    with ExitStack() as stack:
        for site in without:
            stack.enter_context(site.bypass())
        return _ablation([site.name for site in without], whole, sample.right(model))


def pairs_to_try(count: int, most: int, seed: int = 0) -> list[tuple[int, int]]:
    """All pairs of ``count`` sites, or ``most`` of them drawn at random, neighbours first."""
    everything = list(itertools.combinations(range(count), 2))
    if len(everything) <= most:
        return everything
    near = [(i, i + 1) for i in range(count - 1)]
    far = [pair for pair in everything if pair[1] - pair[0] > 1]
    draw = random.Random(seed)
    if len(near) >= most:
        return sorted(draw.sample(near, most))
    return sorted(near + draw.sample(far, most - len(near)))


@contextmanager
def swapped(first: Site, second: Site) -> Iterator[None]:
    """Inside, the two blocks stand in exchanged places."""
    one, two = first.block.forward, second.block.forward
    with first.replace(two), second.replace(one):
        yield


def places(sites: Sequence[Site]) -> list[list[Site]]:
    """Groups of blocks that can exchange places: in one list, of one class and the same shapes of weights, not opening a stage."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    seen = set()
    for site in sites:
        if site.reshapes or id(site.block) in seen:
            continue
        seen.add(id(site.block))
        key = (site.path.rpartition(".")[0], type(site.block), *(tuple(p.shape) for p in site.block.parameters()))
        groups.setdefault(key, []).append(site)
    return [group for group in groups.values() if len(group) > 1]


def deletions(
    model: nn.Module,
    sites: Sequence[Site],
    sample: Sample,
    *,
    draws: int = 3,
    seed: int = 0,
) -> list[Deletion]:
    """Leave out 1, 2, 4, ... random branches, and exchange as many random pairs, ``draws`` times each."""
    draw = random.Random(seed)
    removable = [site for site in sites if not site.reshapes]
    groups = places(sites)
    found = []
    count = 1
    while count <= len(removable):
        errors, moved = [], []
        for _ in range(draws):
            with ExitStack() as stack:
                for site in draw.sample(removable, count):
                    stack.enter_context(site.bypass())
                errors.append(100 * (1 - float(sample.right(model).float().mean())))
            if groups:
                with ExitStack() as stack:
                    for _ in range(count):
                        stack.enter_context(swapped(*draw.sample(draw.choice(groups), 2)))
                    moved.append(100 * (1 - float(sample.right(model).float().mean())))
        mean = sum(errors) / draws
        spread = math.sqrt(sum((e - mean) ** 2 for e in errors) / max(draws - 1, 1))
        found.append(Deletion(count, mean, spread, sum(moved) / draws if moved else None))
        count *= 2
    return found
