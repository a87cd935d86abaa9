"""Candidate settings, evaluated on labelled examples from recorded passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from deepres.ghosting.fit import Costs
from deepres.ghosting.gates import Gate
from deepres.ghosting.points import Point, pareto_front
from deepres.ghosting.recorded import ExitIndices, Passes
from deepres.ghosting.recording import record_signals
from deepres.ghosting.settings import Settings

# thresholds of the exits' confidence that are tried
EXIT_THRESHOLDS = (0.999, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # shares of skipped blocks that are tried
FALLBACK_THRESHOLDS = (0.0, 0.4, 0.6)
PATIENCE = 3  # after this many shares in a row that add nothing to the frontier, larger ones are not tried
Kinds = tuple[Literal["fitted", "fixed"], ...]
EvaluateSettings = Callable[[Passes, Settings, Costs], list[Point]]


def frontier(
    passes: Passes,
    costs: Costs,
    *,
    kinds: Kinds = ("fitted", "fixed"),
    progress: Callable[[str, float], None] = lambda what, share: None,
    evaluate: EvaluateSettings | None = None,
) -> list[Point]:
    """Evaluate all candidate settings on the labelled examples of ``passes``.

    ``kinds``: whether blocks are selected for each input (``"fitted"``) or for all inputs (``"fixed"``). Gates and exits that cost
    more time than they save are not used. ``evaluate``: gives the points with the blocks that some settings select.
    """
    evaluate = evaluate or points_with
    found = evaluate(passes, Settings(), costs)
    for k, kind in enumerate(kinds):
        idle, thresholds = 0, _thresholds(passes, kind == "fixed")
        for done, skip in enumerate(thresholds):
            progress("settings", (k + done / len(thresholds)) / len(kinds))
            more = evaluate(passes, Settings(skip, fixed=kind == "fixed"), costs)
            found += more
            if more:  # else no gate saves time yet, which may change with larger shares
                idle = 0 if {id(one) for one in more} & {id(one) for one in pareto_front(found)} else idle + 1
            if idle == PATIENCE:
                break
    return found


def points_with(passes: Passes, settings: Settings, costs: Costs) -> list[Point]:
    """The candidates for early exits and fallback, with the blocks that ``settings`` select."""
    seen = passes.of(settings)
    if settings.skip_threshold is not None:
        useful = seen.useful_gates(costs)
        if not useful:
            return []
        if not settings.fixed and len(useful) < len(passes.ghost.gates):
            settings = replace(settings, gates=useful)
            seen = passes.of(settings)
    tries = [settings]
    for threshold in EXIT_THRESHOLDS:
        for used in exit_runs(sorted(seen.exits), settings.skip_threshold is not None):
            for average in (False, True):
                tried = replace(settings, exit_threshold=threshold, exits=used, average=average)
                tries.append(seen.with_useful_exits(tried, costs))
    fallbacks = FALLBACK_THRESHOLDS if settings.skip_threshold is not None and not settings.fixed else (0.0,)
    return [
        seen.point(replace(tried, fallback_threshold=fallback), passes.whole, passes.labels, costs)
        for tried in dict.fromkeys(tries)
        for fallback in fallbacks
    ]


@torch.no_grad()
def _thresholds(passes: Passes, fixed: bool) -> list[float]:
    """Quantiles of the predicted importance over the examples, at the tried shares."""
    gates = [(c, gate) for c, gate in enumerate(passes.ghost.gates) if isinstance(gate, Gate)]
    if not gates:
        return []
    if fixed:
        values = torch.cat([gate.bias.cpu() for _, gate in gates]).sort().values
        counts = {max(1, round(share * len(values))) for share in SHARES}
        return [float(values[count]) for count in sorted(counts) if count < len(values)]
    seen = record_signals(passes.ghost, list(passes.given)[:8])
    every = []
    for c, gate in gates:
        importance = gate.linear(seen.entries[c].to(gate.weight.device))[0]
        every.append(importance.flatten().cpu())
    values = torch.cat(every).sort().values
    return [float(values[int(share * len(values))]) for share in SHARES]


def exit_runs(exits: Sequence[int], to_the_end: bool) -> list[ExitIndices]:
    """All runs of consecutive exits; ``to_the_end``: only those that contain the last exit.

    The first exits are the least accurate, and behind the last ones little time can be saved.
    """
    return [
        tuple(exits[a:b]) for a in range(len(exits)) for b in range(a + 1, len(exits) + 1) if b == len(exits) or not to_the_end
    ]
