"""Confirmation of settings on fresh examples, and evaluation on the test split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.adapters import logits_in, logits_of
from deepres.deprecation import renamed_fields
from deepres.ghosting.model import Ghost
from deepres.ghosting.points import Point, pareto_front
from deepres.ghosting.recorded import Passes

CONFIDENCE = 0.9  # level at which the rise of the error must be within the limit
TESTED = 8  # most settings of a kind that are tested on fresh examples, where each needs a pass of its own

SettingsKind = tuple[bool, bool, bool]


def within_error(points: Sequence[Point], whole: float, rise: float, doubt: int = 0) -> dict[SettingsKind, list[Point]]:
    """Points whose error is at most ``rise`` points above ``whole``, by kind of setting, least estimated time first.

    Settings that are estimated to take the whole network's time or more are left out. A kind is (no gates, the same blocks for all
    inputs, no early exits); for each kind, the points on its own Pareto front are returned. ``doubt``: number of examples on which
    the errors were measured, if other examples will confirm them; the limit is then raised by a standard deviation of the error.
    """
    kinds: dict[SettingsKind, list[Point]] = {}
    for point in points:
        chance = 100 * math.sqrt(point.changed / doubt) if doubt else 0.0
        if point.error <= whole + rise + chance and point.time < 1 and not point.settings.whole:
            kind = (point.settings.skip_threshold is None, point.settings.fixed, point.settings.exit_threshold is None)
            kinds.setdefault(kind, []).append(point)
    return {kind: pareto_front(mine) for kind, mine in kinds.items()}


@torch.no_grad()
def confirmed(
    kinds: dict[SettingsKind, list[Point]],
    fresh: Passes,
    rise: float,
    log: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Select for each kind the fastest point whose error rises by at most ``rise`` with 90 % confidence on ``fresh`` examples.

    Selecting the best of many settings biases its score upward, on fresh examples too. Points are therefore tested in a fixed order,
    from the slowest to the fastest, until the first fails (fixed-sequence testing, as in Angelopoulos et al. 2021). Without fresh
    examples, the fastest point of each kind is selected.
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
    """At most ``most`` of the points, evenly spaced, the first and the last included."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def rise_bound(lost: int, won: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of the rise of the error in points, from ``lost`` and ``won`` right answers among ``n`` examples.

    This is the normal bound for paired differences. One more answer counts as lost, so that the bound is above 0 where none was lost.
    """
    share, changed = (lost + 1 - won) / n, (lost + 1 + won) / n
    return 100 * (share + statistics.NormalDist().inv_cdf(confidence) * math.sqrt(max(changed - share**2, 0) / n))


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper confidence bound of a share, from ``count`` of ``n`` independent examples (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    return float(binomtest(count, n, alternative="less").proportion_ci(confidence, method="exact").high)


@renamed_fields(left="exited", again="recomputed")
@dataclass(frozen=True)
class Verified:
    """A ghost compared with its network on the test split. Errors are in percent."""

    n: int  # number of examples
    whole: float  # error of the network
    ghost: float  # error of the ghost
    lost: int  # number of right answers of the network that the ghost gets wrong
    won: int  # number of wrong answers of the network that the ghost gets right
    bound: float  # upper bound of the share of inputs whose right answer is lost, with 95 % confidence, %
    blocks: float  # mean share of blocks that ran
    exited: float  # share of inputs that exited early
    recomputed: float  # share of inputs that fell back to the whole network
    by_class: dict[str, tuple[float, ...]]  # for each class and block, share of the inputs for which the block ran
    depth: tuple[float, ...]  # share of the blocks that ran, by input
    right: tuple[bool, ...]  # whether the ghost's answer is right, by input
    labels: tuple[int, ...]  # by input

    @property
    def rise(self) -> float:
        """Rise of the error, in points."""
        return self.ghost - self.whole


def _traced(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(right, ran, exited_at, recomputed) over all examples."""
    parts = []
    for x, y in given:
        logits = logits_in(ghost(x, trace=True))
        assert ghost.trace is not None
        parts.append(((logits.argmax(1) == y).cpu(), ghost.trace.ran, ghost.trace.exited_at, ghost.trace.recomputed))
    right, ran, exited_at, recomputed = (torch.cat(column) for column in zip(*parts, strict=True))
    return right, ran, exited_at, recomputed


def verify(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]) -> Verified:
    """Compare ``ghost`` with its network on the same examples.

    ``bound`` assumes that inputs are drawn independently from the distribution of the test split.
    """
    wholes = torch.cat([(logits_of(ghost.net, x).argmax(1) == y).cpu() for x, y in given])
    right, ran, exited_at, recomputed = _traced(ghost, given)
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
        exited=float((exited_at >= 0).float().mean()),
        recomputed=float(recomputed.float().mean()),
        by_class={classes[k]: tuple(ran[labels == k].float().mean(0).tolist()) for k in labels.unique().tolist()},
        depth=tuple(depth.tolist()),
        right=tuple(right.tolist()),
        labels=tuple(labels.tolist()),
    )
