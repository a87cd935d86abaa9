"""Confirmation of settings on fresh examples, and verification on the test split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.adapters import logits_in, logits_of
from deepres.ghosting.model import Ghost
from deepres.ghosting.points import Point, pareto_front
from deepres.ghosting.recorded import Passes

CONFIDENCE = 0.9  # with which a rise of the error is within what was allowed
TESTED = 8  # settings of a kind that are tested on fresh examples, at most, where each takes a pass of its own

Kind = tuple[bool, bool, bool]


def within_error(points: Sequence[Point], whole: float, rise: float, doubt: int = 0) -> dict[Kind, list[Point]]:
    """Points whose error is at most ``rise`` points above the whole network's, least estimated time first, by kind of setting.

    Settings whose estimated time is that of the whole network or more are left out. A kind is (no gates, the same blocks for all
    inputs, no early exits); of each kind the points on its own Pareto front are returned. ``doubt``: the number of examples that the
    errors were measured on, if others will confirm them; points then count whose error is above by at most a standard deviation.
    """
    kinds: dict[Kind, list[Point]] = {}
    for point in points:
        chance = 100 * math.sqrt(point.moved / doubt) if doubt else 0.0
        if point.error <= whole + rise + chance and point.time < 1 and not point.settings.whole:
            kind = (point.settings.skip_threshold is None, point.settings.fixed, point.settings.exit_threshold is None)
            kinds.setdefault(kind, []).append(point)
    return {kind: pareto_front(mine) for kind, mine in kinds.items()}


@torch.no_grad()
def confirmed(
    kinds: dict[Kind, list[Point]],
    fresh: Passes,
    rise: float,
    log: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Of each kind the fastest point whose error rises by at most ``rise``, with 90 % confidence, on examples that did not choose it.

    Selecting the best of many settings biases its score upward, on fresh examples too if the fastest that passes is taken. So the
    points are tested in an order that is fixed beforehand, from the slowest on, and the first that fails ends it (fixed-sequence
    testing, as in Angelopoulos et al. 2021). Without fresh examples the fastest of each kind is taken.
    """
    if not len(fresh):
        return [mine[0] for mine in kinds.values()]
    right = fresh.whole.argmax(1) == fresh.labels
    n, found = len(fresh), []
    for mine in kinds.values():
        passed: Point | None = None
        for point in mine[::-1] if mine[0].settings.skip_threshold is None else _spaced(mine[::-1], TESTED):
            here = fresh.of(point.settings).answers(point.settings, fresh.whole) == fresh.labels
            lost, won = int((right & ~here).sum()), int((here & ~right).sum())
            bound = rise_bound(lost, won, n)
            log(
                f"{point.settings.describe()}, estimated {100 * point.time:.0f} %: {lost} right answers lost and {won} won of "
                f"{n:,} further examples, a rise of at most {bound:.2f} points with {100 * CONFIDENCE:.0f} % confidence"
            )
            if bound > rise:
                break
            passed = point
        if passed is not None:
            found.append(passed)
    return found


def _spaced(points: list[Point], most: int) -> list[Point]:
    """At most ``most`` of the points, evenly spaced, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def rise_bound(lost: int, won: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Points that the error rises by at most, one-sided, where of ``n`` examples ``lost`` right answers were lost and ``won`` were won.

    The normal bound of the paired differences, with one more lost, so that none lost of few examples is no proof.
    """
    share, changed = (lost + 1 - won) / n, (lost + 1 + won) / n
    return 100 * (share + statistics.NormalDist().inv_cdf(confidence) * math.sqrt(max(changed - share**2, 0) / n))


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided interval for a share, from ``count`` of ``n`` independent examples (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    return float(binomtest(count, n, alternative="less").proportion_ci(confidence, method="exact").high)


@dataclass(frozen=True)
class Verified:
    """The ghost beside its network on the test split. Errors in percent."""

    n: int
    whole: float
    ghost: float
    lost: int  # right answers of the network that the ghost gets wrong
    won: int
    bound: float  # with 95 % confidence no more than this share of inputs is lost, %
    blocks: float  # mean share of blocks that ran
    left: float
    again: float
    by_class: dict[str, tuple[float, ...]]  # share of the class's inputs for which each block ran
    depth: tuple[float, ...]  # by input: the share of the blocks that ran
    right: tuple[bool, ...]
    labels: tuple[int, ...]

    @property
    def rise(self) -> float:
        return self.ghost - self.whole


def answers_of(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(right, ran, left, again) over all examples."""
    parts = []
    for x, y in given:
        logits = logits_in(ghost(x, trace=True))
        assert ghost.trace is not None
        parts.append(((logits.argmax(1) == y).cpu(), ghost.trace.ran, ghost.trace.left, ghost.trace.again))
    right, ran, left, again = (torch.cat(column) for column in zip(*parts, strict=True))
    return right, ran, left, again


def verify(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]) -> Verified:
    """Both on the same examples. The bound assumes that inputs come independently from the law that the test split came from."""
    wholes = torch.cat([(logits_of(ghost.net, x).argmax(1) == y).cpu() for x, y in given])
    right, ran, left, again = answers_of(ghost, given)
    labels = torch.cat([y.cpu() for _, y in given])
    depth = ran.float().mean(1)
    lost, n = int((wholes & ~right).sum()), len(labels)
    return Verified(
        n=n,
        whole=100 * (1 - float(wholes.float().mean())),
        ghost=100 * (1 - float(right.float().mean())),
        lost=lost,
        won=int((~wholes & right).sum()),
        bound=100 * clopper_pearson(lost, n),
        blocks=float(depth.mean()),
        left=float((left >= 0).float().mean()),
        again=float(again.float().mean()),
        by_class={classes[k]: tuple(ran[labels == k].float().mean(0).tolist()) for k in labels.unique().tolist()},
        depth=tuple(depth.tolist()),
        right=tuple(right.tolist()),
        labels=tuple(labels.tolist()),
    )
