"""Risk control: settings are confirmed on fresh examples, and the one that is selected is evaluated on the test split."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepres.adapters import logits_in, logits_of
from deepres.deprecation import renamed_fields
from deepres.ghosting.fit import Costs
from deepres.ghosting.model import Ghost
from deepres.ghosting.options import GhostOptions
from deepres.ghosting.points import Point, pareto_front
from deepres.ghosting.recorded import Passes
from deepres.ghosting.settings import Settings

STEPS = 100  # most settings of a path through exit thresholds
TESTED = 8  # most settings of a kind that are tested on fresh examples, where each needs a pass of its own

SettingsKind = tuple[bool, bool, bool]
EXITS_ALONE: SettingsKind = (True, False, False)


def within_error(points: Sequence[Point], whole: float, rise: float, doubt: int = 0) -> dict[SettingsKind, list[Point]]:
    """Points whose error is at most ``rise`` points above ``whole``, by kind of setting, least estimated time first.

    Settings that are estimated to take the whole network's time or more are left out. A kind is (no gates, the same blocks for all
    inputs, no early exits); for each kind, the points on its own Pareto front are returned. ``doubt``: number of examples on which
    the errors were measured, if other examples will confirm them; the limit is then raised by a standard deviation of the error.
    Kinds with gates are left out where early exits alone are estimated to be as fast, because kinds share the confidence.
    """
    kinds: dict[SettingsKind, list[Point]] = {}
    for point in points:
        chance = 100 * math.sqrt(point.changed / doubt) if doubt else 0.0
        if point.error <= whole + rise + chance and point.time < 1 and not point.settings.whole:
            kind = (point.settings.skip_threshold is None, point.settings.fixed, point.settings.exit_threshold is None)
            kinds.setdefault(kind, []).append(point)
    exits_alone = min((point.time for point in kinds.get(EXITS_ALONE, [])), default=1.0)
    fronts = {kind: pareto_front(mine) for kind, mine in kinds.items()}
    return {kind: mine for kind, mine in fronts.items() if kind == EXITS_ALONE or mine[0].time < exits_alone}


@torch.no_grad()
def confirmed(
    kinds: dict[SettingsKind, list[Point]],
    held: Passes,
    fresh: Passes,
    rise: float,
    costs: Costs,
    confidence: float = GhostOptions.confidence,
    log: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Find for each kind the fastest point whose error rises by at most ``rise`` points, at ``confidence`` for all of them together.

    Each kind is a path of settings, which is followed on ``fresh`` examples while the bound of the rise is within the limit. The
    probability 1 - ``confidence`` of an excess is shared equally among the kinds, so whichever of the points is selected later, by
    its time, keeps the limit at ``confidence``. The points are evaluated on ``held``, where the kinds were chosen. Without fresh
    examples, the fastest point of each kind is returned.
    """
    if not len(fresh):
        return [mine[0] for mine in kinds.values()]
    found = []
    for mine in kinds.values():
        settings = last_confirmed(path_of(mine, held), fresh, rise, 1 - (1 - confidence) / len(kinds), log)
        if not settings.whole:
            found.append(held.of(settings).point(settings, held.whole, held.labels, costs))
    return found


def path_of(mine: Sequence[Point], held: Passes) -> list[Settings]:
    """Order the settings of one kind from the safest to the fastest. ``mine``: points of that kind, fastest first.

    With early exits the settings are those of the fastest point, indexed by the exit threshold: each threshold lets a further hundredth
    of the examples ``held`` exit. At first hardly any input exits, so without gates and averages the path begins at the whole network.
    Without early exits it leads through ``mine``, each of which needs a pass of its own over the fresh examples.
    """
    settings = mine[0].settings
    if settings.exit_threshold is None:
        return [point.settings for point in _spaced(mine[::-1], TESTED)]
    highest = held.of(settings).highest_confidence(settings).sort(descending=True).values
    ends = [len(highest) * (step + 1) // STEPS - 1 for step in range(STEPS)]
    thresholds = dict.fromkeys(float(highest[i]) for i in ends if i >= 0)
    return [replace(settings, exit_threshold=threshold) for threshold in thresholds if threshold > 0]


def last_confirmed(
    path: Sequence[Settings],
    fresh: Passes,
    rise: float,
    confidence: float = GhostOptions.confidence,
    log: Callable[[str], None] = lambda text: None,
) -> Settings:
    """Find the last setting of ``path`` up to which ``rise_bound`` is at most ``rise`` points on ``fresh`` examples.

    This is risk control by an upper confidence bound (Bates et al. 2021), which Jazbec et al. (2024) apply to early exits. To return a
    setting whose rise exceeds the limit, the search has to pass the first such setting of the path, where the bound is too low with a
    probability of at most 1 - ``confidence``. The guarantee therefore holds for the setting that is returned, whether or not
    the rise is monotone along the path; where it is not, faster settings behind a first excess are not reached. It assumes that ``path``
    was made without the fresh examples, and that these and later inputs are drawn independently from one distribution. At a
    confidence of one half the rule is that of conformal risk control (Angelopoulos et al. 2024): the rise is within the limit on
    average. Returns ``Settings()``, the whole network, if the first setting is not confirmed.
    """
    right = fresh.whole.argmax(1) == fresh.labels
    n, found, last = len(fresh), Settings(), "nothing is confirmed"
    for settings in path:
        here = fresh.of(settings).answers(settings, fresh.whole) == fresh.labels
        lost, won = int((right & ~here).sum()), int((here & ~right).sum())
        bound = rise_bound(lost, won, n, confidence)
        text = (
            f"{settings.describe()}, {lost} right answers lost and {won} won of {n:,} further examples, a rise of at most "
            f"{bound:.2f} points with {100 * confidence:.0f} % confidence"
        )
        if bound > rise:
            log(f"{last}; not confirmed: {text}")
            return found
        found, last = settings, f"confirmed: {text}"
    log(last)
    return found


def _spaced(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most ``most`` of the points, evenly spaced, the first and the last included."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def rise_bound(lost: int, won: int, n: int, confidence: float = GhostOptions.confidence) -> float:
    """One-sided upper bound of the rise of the error in points, from ``lost`` and ``won`` right answers among ``n`` examples.

    This is the normal bound for paired differences. One more answer counts as lost, so that the bound is above 0 where none was lost
    and holds where few answers change: the exact probability that it is below a true rise of 0.2 to 1 points is at most 10.4 % for a
    ``confidence`` of 0.9, from 500 to 8,000 examples of which up to a tenth change. Bounds without the normal approximation, such as
    that of Waudby-Smith and Ramdas (2024), are wider.
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


def _compared(ghost: Ghost, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """(labels, whether the network is right, whether the ghost is, ran, exited_at, recomputed) of one batch."""
    whole = logits_of(ghost.net, x).argmax(1) == y
    right = logits_in(ghost(x, trace=True)).argmax(1) == y
    assert ghost.trace is not None
    return y.cpu(), whole.cpu(), right.cpu(), ghost.trace.ran, ghost.trace.exited_at, ghost.trace.recomputed


def verify(ghost: Ghost, given: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str]) -> Verified:
    """Compare ``ghost`` with its network on the same batches of examples, one batch after the other.

    ``bound`` assumes that inputs are drawn independently from the distribution of the test split.
    """
    parts = zip(*(_compared(ghost, x, y) for x, y in given), strict=True)
    labels, wholes, right, ran, exited_at, recomputed = (torch.cat(part) for part in parts)
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
