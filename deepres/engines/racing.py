"""Time candidates in turns, and those that are about as fast as the fastest for longer, until they are told apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from math import comb

import torch

from deepres.evaluation import timing

TURNS = 7  # of all candidates
BURST = 0.1  # seconds of calls in a turn: what ran before leaves its data in the caches and its threads spinning
MOST_CALLS = 256
CHANCE = 0.01  # at which two equally fast candidates are told apart by their turns
CLEAR = 1.1  # a candidate that is slower by this factor in every turn is out at once
POLISHES = 20  # of the medians in ``speeds``; they settle in a few


class Burst:
    """One turn of a candidate: repeats a call for about a tenth of a second, and makes it at least once."""

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self.call = call
        took = timing.call_times(call, device, repeats=2, warmup=2)
        self.times = max(1, min(MOST_CALLS, round(BURST / max(min(took), 1e-9))))

    def __call__(self) -> None:
        for _ in range(self.times):
            self.call()


def race(
    calls: Mapping[str, Callable[[], object]],
    kinds: Mapping[str, str],
    device: torch.device,
    *,
    reference: str,
    seconds: float,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, list[float]]:
    """Seconds of a call of each candidate, turn by turn. All take part in the first turns: seven, or fewer if half of ``seconds`` is over.

    Then those go on that are not told apart from the fastest of their kind or from the fastest of all, until they are, or until
    ``seconds`` is over. Who is out does not come back, so that entries of equal index are of one turn.

    ``kinds``: of the candidates, such as their precisions. ``reference``: the one of ``calls`` that is measured in the first turns only
    and is no candidate.
    """
    bursts = {name: Burst(call, device) for name, call in calls.items()}
    began = timing.now(device)
    times = _turns(bursts, device, TURNS, seconds / 2)
    going, undecided = set(kinds), set[str]()
    while timing.now(device) - began < seconds:
        before, undecided = undecided, _undecided(times, kinds, reference, going)
        if not undecided:
            break
        if undecided != before:
            log(f"measuring on, as these are not told apart yet: {', '.join(sorted(undecided))}")
        going = undecided
        for name, more in _turns({name: bursts[name] for name in kinds if name in going}, device, 2, None).items():
            times[name] += more
    return times


def _turns(bursts: Mapping[str, Burst], device: torch.device, turns: int, seconds: float | None) -> dict[str, list[float]]:
    took = timing.alternate(bursts, device, turns=turns, seconds=seconds)
    return {name: [value / bursts[name].times for value in values] for name, values in took.items()}


def _undecided(times: Mapping[str, Sequence[float]], kinds: Mapping[str, str], reference: str, going: set[str]) -> set[str]:
    """Candidates that are about as fast as the fastest of their kind or of all, and those."""
    speed = speeds(times, reference)
    best = {kind: max((name for name in kinds if kinds[name] == kind), key=speed.__getitem__) for kind in kinds.values()}
    first = max(kinds, key=speed.__getitem__, default=reference)
    pairs = [(name, leader) for name in kinds for leader in {best[kinds[name]], first} if name != leader]
    return {one for pair in pairs if going.issuperset(pair) and not told_apart(*(times[name] for name in pair)) for one in pair}


def speeds(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, float]:
    """Speed of each candidate relative to ``reference``.

    The machine is faster in one turn than in the next, so the time of a call is taken for the product of a factor of its turn and a time
    of its candidate. Both are fitted by median polish of the logarithms (Tukey 1977, chapter 11): a call that was disturbed moves
    neither, and candidates compare that took part in different numbers of turns.
    """
    logs = {name: [math.log(max(value, 1e-12)) for value in values] for name, values in times.items()}
    own = {name: statistics.median(values) for name, values in logs.items()}
    for _ in range(POLISHES):
        turns = [
            statistics.median(values[turn] - own[name] for name, values in logs.items() if turn < len(values))
            for turn in range(max(map(len, logs.values())))
        ]
        own = {
            name: statistics.median(value - turn for value, turn in zip(values, turns, strict=False))
            for name, values in logs.items()
        }
    return {name: math.exp(own[reference] - value) for name, value in own.items()}


def told_apart(slow: Sequence[float], fast: Sequence[float]) -> bool:
    """Return whether the times of two candidates, turn by turn, show that one is faster.

    They do where it is faster by a tenth in each of three turns or more, or in so many turns that an equally fast one would be in fewer
    than one of a hundred measurements (sign test, which holds for noise of any distribution).
    """
    pairs = list(zip(slow, fast, strict=False))
    n, won, lost = len(pairs), sum(b < a for a, b in pairs), sum(a < b for a, b in pairs)
    if n >= timing.LEAST_TURNS and (all(CLEAR * b < a for a, b in pairs) or all(CLEAR * a < b for a, b in pairs)):
        return True
    fewer = n - max(won, lost)  # turns of equal time speak against a difference
    return 2 * sum(comb(n, k) for k in range(fewer + 1)) <= CHANCE * 2**n
