"""Choose a ghost's settings: the frontier of error against time on the validation split, and what may be said of the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.ghost.route import Ghost, Settings
from deepres.nn import logits_of

LEAVES = (None, 0.995, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # confidences that are tried
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of ghosted blocks that are tried
SURE = (0.0, 0.4)


@dataclass(frozen=True)
class Point:
    """One setting on the validation split."""

    settings: Settings
    error: float  # %
    time: float  # of the whole network's, foretold from the blocks that ran and their measured times
    blocks: float  # mean share of blocks that ran
    left: float  # share of inputs that left early


def _answers(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(right, ran, left, again) over all examples."""
    parts = []
    for x, y in given:
        logits = logits_of_ghost(ghost, x)
        assert ghost.trace is not None
        parts.append(((logits.argmax(1) == y).cpu(), ghost.trace.ran, ghost.trace.left, ghost.trace.again))
    right, ran, left, again = (torch.cat(column) for column in zip(*parts, strict=True))
    return right, ran, left, again


def logits_of_ghost(ghost: Ghost, x: Tensor) -> Tensor:
    """With a trace."""
    out = ghost(x, trace=True)
    return getattr(out, "logits", out).float()


def frontier(
    ghost: Ghost,
    given: Sequence[tuple[Tensor, Tensor]],
    times: Sequence[float],
    *,
    watch: Callable[[str, float], None] = lambda what, share: None,
) -> list[Point]:
    """All settings that are tried, on labelled examples. ``times``: of each block, as shares of a forward pass."""
    skips = _thresholds(ghost, given)
    tries: list[Settings] = []
    for skip in skips:
        for leave in LEAVES if any(_has_exit(ghost)) else (None,):
            tries += [Settings(skip, leave, sure) for sure in (SURE if skip is not None else (0.0,))]
    before, found = ghost.settings, []
    cost = torch.tensor(list(times))
    rest = max(0.0, 1 - float(cost.sum()))
    try:
        for done, settings in enumerate(tries):
            watch("settings", done / len(tries))
            ghost.settings = settings
            right, ran, left, again = _answers(ghost, given)
            spent = (ran.float() @ cost).mean() + rest + again.float().mean()
            found.append(
                Point(
                    settings,
                    100 * (1 - float(right.float().mean())),
                    float(spent),
                    float(ran.float().mean()),
                    float((left >= 0).float().mean()),
                )
            )
    finally:
        ghost.settings = before
    return found


def _has_exit(ghost: Ghost) -> list[bool]:
    from deepres.ghost.route import Exit

    return [isinstance(head, Exit) for head in ghost.exits]


@torch.no_grad()
def _thresholds(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> list[float | None]:
    """Worths below which the tried shares of blocks lie, over the examples."""
    from deepres.ghost.fit import look
    from deepres.ghost.route import Gate

    gates = [(c, gate) for c, gate in enumerate(ghost.gates) if isinstance(gate, Gate)]
    if not gates:
        return [None]
    seen = look(ghost, list(given)[:8])
    every = []
    for c, gate in gates:
        device = gate.weight.device
        worth = gate(seen.entries[c].to(device)[:, :, None, None])
        every.append(worth[torch.isfinite(worth)].flatten())
    values = torch.cat(every).sort().values
    return [None if share == 0 else float(values[min(int(share * len(values)), len(values) - 1)]) for share in SHARES]


def best(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both error and time, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.error, p.time)):
        if not kept or point.time < kept[-1].time - 1e-9:
            kept.append(point)
    return kept[::-1]


@torch.no_grad()
def time_against_whole(ghost: Ghost, inputs: Tensor, batch: int, *, turns: int = 7) -> tuple[float, tuple[float, float]]:
    """Mean time of a call of the ghost against the whole network's on the same inputs in batches of ``batch``, taking turns.

    The fastest turn of each counts; the spread is the middle half of the turns' ratios. Gates, exits and gathers are in it.
    """
    pieces = list(inputs.split(batch))
    wait = torch.cuda.synchronize if inputs.is_cuda else (lambda: None)
    calls: dict[str, Callable[[Tensor], object]] = {"whole": ghost.net, "ghost": ghost}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for piece in pieces[:2]:
            call(piece)
    for turn in range(turns):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            wait()
            began = time.perf_counter()
            for piece in pieces:
                calls[name](piece)
            wait()
            seconds[name].append(time.perf_counter() - began)
    ratios = sorted(b / a for a, b in zip(seconds["whole"], seconds["ghost"], strict=True))
    quarter = len(ratios) // 4
    return min(seconds["ghost"]) / min(seconds["whole"]), (ratios[quarter], ratios[-1 - quarter])


def within_budget(
    ghost: Ghost, points: Sequence[Point], budget: float, inputs: Tensor, batch: int, say: Callable[[str], None]
) -> Point:
    """The point of least error whose *measured* time at this batch is within ``budget``; also sets it.

    Raises ``DeepresError`` where none is, with the figure of the fastest.
    """
    line = best(points)
    last = math.inf
    for point in sorted(line, key=lambda p: p.error):
        if point.time > 1.05 * budget:
            continue
        ghost.settings = point.settings
        if point.settings.whole:
            return point
        last, _ = time_against_whole(ghost, inputs, batch)
        say(f"foretold {100 * point.time:.0f} %, measured {100 * last:.0f} % of the time at batch {batch}")
        if last <= budget:
            return point
    ghost.settings = Settings()
    fastest = f"the fastest setting takes {100 * last:.0f} %" if last < math.inf else "no setting is foretold to be as fast"
    raise DeepresError(f"--budget {budget:g} cannot be kept at batch {batch}: {fastest} of the whole network's time")


def within_error(points: Sequence[Point], whole: float, rise: float) -> Point:
    """The fastest point whose validation error is at most ``rise`` points above the whole network's."""
    allowed = [point for point in points if point.error <= whole + rise]
    return min(allowed, key=lambda p: (p.time, p.error)) if allowed else next(p for p in points if p.settings.whole)


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided interval for a share, from ``count`` of ``n`` independent examples (Clopper and Pearson 1934)."""
    if count >= n:
        return 1.0
    low, high = count / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(count, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, n: int, p: float) -> float:
    """P(X <= count) for X binomial in n and p."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(count + 1)
    ]
    top = max(logs)
    return math.exp(top) * sum(math.exp(value - top) for value in logs)


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
    by_class: dict[str, float]  # mean share of blocks that ran

    @property
    def rise(self) -> float:
        return self.ghost - self.whole


def verify(ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]) -> Verified:
    """Both on the same examples. The bound assumes that inputs come independently from the law that the test split came from."""
    wholes = torch.cat([(logits_of(ghost.net, x).argmax(1) == y).cpu() for x, y in given])
    right, ran, left, again = _answers(ghost, given)
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
        by_class={classes[k]: float(depth[labels == k].mean()) for k in labels.unique().tolist()},
    )


__all__ = [
    "Point", "Verified", "best", "clopper_pearson", "frontier", "time_against_whole", "verify", "within_budget",
    "within_error",
]  # fmt: skip
