"""Lesions: what the error becomes when blocks are left out or change places (Veit et al. 2016, sections 4.1 and 4.2)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from deepres.adapters import Site
from deepres.adapters.site import _patched
from deepres.lens.sample import Sample

Z = 1.96  # of the intervals: 95 %


@dataclass(frozen=True)
class Lesion:
    """The error with something changed, against the error without, on the same examples. Errors in percent."""

    what: tuple[str, ...]  # names of the sites
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
    """The change of the error in points, and its 95 % interval, from truth values of the same answers before and after.

    Paired and adjusted as Agresti and Min (2005) advise: half an example is added to each kind of change, so that no change
    at all among n examples still has an interval of about 2/n.
    """
    n = len(before)
    worse, better = int((before & ~after).sum()), int((~before & after).sum())
    total, b, c = n + 2, worse + 0.5, better + 0.5
    middle = (b - c) / total
    half = Z * math.sqrt(max((b + c) - (b - c) ** 2 / total, 0)) / total
    return 100 * (worse - better) / n, 100 * (middle - half), 100 * (middle + half)


def _lesion(names: Sequence[str], whole: Tensor, now: Tensor) -> Lesion:
    change, low, high = interval(whole, now)
    return Lesion(tuple(names), 100 * (1 - float(now.float().mean())), change, low, high)


def bypassed(model: nn.Module, sample: Sample, whole: Tensor, without: Sequence[Site]) -> Lesion:
    """The lesion of leaving out the branches of ``without``. ``whole``: what was right without a lesion."""
    with ExitStack() as stack:
        for site in without:
            stack.enter_context(site.bypass())
        return _lesion([site.name for site in without], whole, sample.right(model))


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
    """The two blocks in exchanged places, with everything in them."""
    one, two = first.block.forward, second.block.forward
    with _patched(first.block, two), _patched(second.block, one):
        yield


def places(sites: Sequence[Site]) -> list[list[Site]]:
    """Blocks that fit into each other's places: of one class and one shape of weights, none of them a stage's opening."""
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
    tick: Callable[[], None] = lambda: None,
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
            tick()
            if groups:
                with ExitStack() as stack:
                    for _ in range(count):
                        stack.enter_context(swapped(*draw.sample(draw.choice(groups), 2)))
                    moved.append(100 * (1 - float(sample.right(model).float().mean())))
            tick()
        mean = sum(errors) / draws
        spread = math.sqrt(sum((e - mean) ** 2 for e in errors) / max(draws - 1, 1))
        found.append(Deletion(count, mean, spread, sum(moved) / draws if moved else None))
        count *= 2
    return found
