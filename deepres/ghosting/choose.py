"""Choose a ghost's settings: the frontier of error against time on the validation split, and what is fastest of it as measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.evaluation import time_against
from deepres.evaluation.timing import call_times
from deepres.ghosting.fit import Costs
from deepres.ghosting.heads import Gate, Said
from deepres.ghosting.recording import look
from deepres.ghosting.route import Ghost
from deepres.ghosting.settings import Settings

# confidences that are tried
LEAVES = (0.999, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of ghosted blocks that are tried
SURE = (0.0, 0.4, 0.6)
PATIENCE = 3  # shares in a row that add nothing to the frontier, after which larger ones are not tried
Kinds = tuple[Literal["fitted", "fixed"], ...]
ROOM = 1 << 30  # bytes of passes that are kept
TOGETHER = 250  # examples of a pass, where nothing is timed


@dataclass(frozen=True)
class Point:
    """One setting on the validation split."""

    settings: Settings
    error: float  # %
    time: float  # of the whole network's, foretold from the blocks that ran and their measured times
    blocks: float  # mean share of blocks that ran
    left: float  # share of inputs that left early
    moved: float = 0.0  # share of inputs whose answer became right or wrong


class Passes:
    """What a ghost does on labelled examples, one pass for each choice of blocks, made when it is first asked for.

    A pass in which nobody leaves tells of every confidence to leave at, since an input that leaves changes nothing for the others.
    """

    def __init__(self, ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.ghost, self.given = ghost, given
        self.labels = torch.cat([y.cpu() for _, y in given]) if given else torch.zeros(0, dtype=torch.long)
        self._made: dict[Settings, Recorded] = {}

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """(N, ...)."""
        return torch.cat([x for x, _ in self.given])

    def of(self, settings: Settings) -> Recorded:
        """With the blocks that ``settings`` choose."""
        blocks = replace(settings, leave=None, exits=None, sure=0.0, mean=False)
        if blocks not in self._made:
            if sum(one.nbytes for one in self._made.values()) > ROOM:
                self._made = {key: one for key, one in self._made.items() if key == Settings()}
            self._made[blocks] = Recorded.of(self.ghost, self.given, blocks)
        return self._made[blocks]

    @property
    def whole(self) -> Tensor:
        """(N, classes): the network's own answers."""
        return self.of(Settings()).logits


def frontier(
    passes: Passes,
    costs: Costs,
    *,
    kinds: Kinds = ("fitted", "fixed"),
    watch: Callable[[str, float], None] = lambda what, share: None,
) -> list[Point]:
    """All settings that are tried, on labelled examples.

    ``kinds``: which ways to choose blocks are tried. Gates and exits that cost more than they save are not asked.
    """
    found = _points(passes, Settings(), costs)
    for k, kind in enumerate(kinds):
        idle, thresholds = 0, _thresholds(passes, kind == "fixed")
        for done, skip in enumerate(thresholds):
            watch("settings", (k + done / len(thresholds)) / len(kinds))
            more = _points(passes, Settings(skip, fixed=kind == "fixed"), costs)
            found += more
            if more:  # where no gate pays yet, it may with larger shares
                idle = 0 if {id(one) for one in more} & {id(one) for one in best(found)} else idle + 1
            if idle == PATIENCE:
                break
    return found


def _points(passes: Passes, settings: Settings, costs: Costs) -> list[Point]:
    """All ways to leave that are tried, with the blocks that ``settings`` choose."""
    seen = passes.of(settings)
    if settings.skip is not None:
        useful = seen.useful_gates(costs)
        if not useful:
            return []
        if not settings.fixed and len(useful) < len(passes.ghost.gates):
            settings = replace(settings, gates=useful)
            seen = passes.of(settings)
    tries = [settings]
    for leave in LEAVES:
        for asked in stretches(sorted(seen.exits), settings.skip is not None):
            for mean in (False, True):
                tried = replace(settings, leave=leave, exits=asked, mean=mean)
                tries.append(seen.with_useful_exits(tried, costs))
    sures = SURE if settings.skip is not None and not settings.fixed else (0.0,)
    return [
        seen.point(replace(tried, sure=sure), passes.whole, passes.labels, costs)
        for tried in dict.fromkeys(tries)
        for sure in sures
    ]


Exits = tuple[int, ...]
Told = tuple[Tensor, Tensor]  # answers (N,), and how sure they are (N,)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Passes in which nobody left: each exit's answers beside the last ones."""

    ghost: Ghost
    logits: Tensor  # (N, classes)
    ran: Tensor  # (N, blocks) of truth values
    exits: dict[int, tuple[Tensor, Tensor]]  # by segment: calibrated logits (N, classes), confidences (N,)
    _told: dict[tuple[Exits, bool], tuple[dict[int, Told], Told]] = field(default_factory=dict)

    @classmethod
    def of(cls, ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]], settings: Settings) -> Recorded:
        logits, ran = [], []
        exits: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for x, _ in given:
            last, trace, answers = ghost.record(x, settings)
            logits.append(last.cpu())
            ran.append(trace.ran)
            for c, answer in enumerate(answers):
                if answer is not None:
                    exits.setdefault(c, []).append((answer[0].cpu(), answer[1].cpu()))
        joined = {c: (torch.cat([a for a, _ in many]), torch.cat([b for _, b in many])) for c, many in exits.items()}
        return cls(ghost, torch.cat(logits), torch.cat(ran), joined)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.logits, self.ran, *(t for pair in self.exits.values() for t in pair)))

    def told(self, asked: Exits, mean: bool) -> tuple[dict[int, Told], Told]:
        """By segment that is ``asked`` what its exit answers; and what is answered at the end."""
        if (asked, mean) not in self._told:
            found, said = {}, None
            for c in asked:
                logits, confidence = self.exits[c]
                if mean:
                    said, logits, confidence = Said.hear(said, logits, confidence)
                found[c] = (logits.argmax(1), confidence)
            last = self.logits if said is None else self.ghost.with_exits(self.logits, said)
            self._told[asked, mean] = found, (last.argmax(1), last.softmax(1).amax(1))
        return self._told[asked, mean]

    def useful_gates(self, costs: Costs) -> tuple[int, ...]:
        """Chunks whose gate saves more than it takes."""
        saved = (~self.ran).float().mean(0) * costs.branches
        return tuple(
            c
            for c, segment in enumerate(self.ghost.segments)
            if float(saved[list(segment.units)].sum()) > float(costs.gates[c])
        )

    def with_useful_exits(self, settings: Settings, costs: Costs) -> Settings:
        """Without the exits that take more than they save, tried from the last to the first."""

        def time_of(tried: Settings) -> float:
            return self._time(self._leaving(tried)[1], tried, costs)

        best, least = settings, time_of(settings)
        for c in sorted(settings.exits or (), reverse=True):
            fewer = replace(best, exits=tuple(one for one in best.exits or () if one != c))
            if (spent := time_of(fewer)) <= least:
                best, least = fewer, spent
        return best if best.exits else replace(settings, leave=None, exits=None, mean=False)

    def _leaving(self, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
        """(answers, blocks that were come to, inputs that are left) with ``settings``."""
        come = torch.ones_like(self.ran)
        inside = torch.ones(len(come), dtype=torch.bool)
        found, (answer, _) = self.told(self._asked(settings), settings.mean)
        for c, (said, confidence) in found.items():
            goes = inside & (confidence >= (settings.leave or 0))
            answer = torch.where(goes, said, answer)
            come[goes, self.ghost.segments[c].units[-1] + 1 :] = False
            inside &= ~goes
        return answer, come, inside

    def _asked(self, settings: Settings) -> Exits:
        return tuple(c for c in sorted(self.exits) if settings.asks_exit(c))

    def _time(self, come: Tensor, settings: Settings, costs: Costs) -> float:
        """Foretold: blocks that run of those that are come to, gates and exits that are asked, and what always runs."""
        coming, running = costs.paid(come.float().mean(0)), costs.paid((self.ran & come).float().mean(0))
        spent = float((costs.blocks - costs.branches) @ coming + costs.branches @ running) + costs.rest
        for c, segment in enumerate(self.ghost.segments):
            here = coming[segment.units[0]]
            if settings.asks_gate(c) and not settings.fixed:
                spent += float(here * costs.gates[c])
            if settings.asks_exit(c):
                spent += float(here * costs.exits[c])
        return spent

    def answers(self, settings: Settings, whole: Tensor) -> Tensor:
        """(N,): the answers with ``settings``, where ``whole`` (N, classes) are the network's own."""
        return self._answers(settings, whole)[0]

    def _answers(self, settings: Settings, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answers, blocks that were come to, inputs that stayed to the end, inputs that were answered again)."""
        answer, come, inside = self._leaving(settings)
        again = torch.zeros_like(inside)
        if settings.sure > 0:
            sure = self.told(self._asked(settings), settings.mean)[1][1]
            again = inside & ~self.ran.all(1) & (sure < settings.sure)
            answer = torch.where(again, whole.argmax(1), answer)
        return answer, come, inside, again

    def point(self, settings: Settings, whole: Tensor, labels: Tensor, costs: Costs) -> Point:
        """What ``settings`` would have come to."""
        answer, come, inside, again = self._answers(settings, whole)
        right = answer == labels
        return Point(
            settings,
            error=100 * (1 - float(right.float().mean())),
            time=self._time(come, settings, costs) + float(again.float().mean()),
            blocks=float((self.ran & come).float().mean()),
            left=1 - float(inside.float().mean()),
            moved=float((right != (whole.argmax(1) == labels)).float().mean()),
        )


@torch.no_grad()
def _thresholds(passes: Passes, fixed: bool) -> list[float]:
    """Worths below which the tried shares of blocks lie, over the examples."""
    gates = [(c, gate) for c, gate in enumerate(passes.ghost.gates) if isinstance(gate, Gate)]
    if not gates:
        return []
    if fixed:
        values = torch.cat([gate.bias.cpu() for _, gate in gates]).sort().values
        counts = {max(1, round(share * len(values))) for share in SHARES}
        return [float(values[count]) for count in sorted(counts) if count < len(values)]
    seen = look(passes.ghost, list(passes.given)[:8])
    every = []
    for c, gate in gates:
        worth = gate.linear(seen.entries[c].to(gate.weight.device))[0]
        every.append(worth.flatten().cpu())
    values = torch.cat(every).sort().values
    return [float(values[int(share * len(values))]) for share in SHARES]


def stretches(exits: Sequence[int], to_the_end: bool) -> list[Exits]:
    """Runs of consecutive exits: the first are the least sure of what they say, and behind the last little is left to save."""
    return [
        tuple(exits[a:b]) for a in range(len(exits)) for b in range(a + 1, len(exits) + 1) if b == len(exits) or not to_the_end
    ]


def best(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both error and time, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.error, p.time)):
        if not kept or point.time < kept[-1].time - 1e-9:
            kept.append(point)
    return kept[::-1]


def time_against_whole(ghost: Ghost, inputs: Tensor, batch: int) -> tuple[float, tuple[float, float]]:
    """``time_against`` its own network, called straight; gates, exits and gathers are in the ghost's time."""

    def whole(x: Tensor) -> object:
        ghost.route(False)
        return ghost.net(x)

    return time_against(whole, ghost, inputs, batch)


def within_budget(
    ghost: Ghost, points: Sequence[Point], budget: float, inputs: Tensor, batch: int, say: Callable[[str], None]
) -> Point:
    """The point of least error whose *measured* time at this batch is within ``budget``; also sets it.

    Raises ``DeepresError`` where none is, with the figure of the fastest.
    """
    fastest = math.inf
    for point in sorted(best(points), key=lambda p: p.error):
        if point.time > 1.05 * budget:
            continue
        ghost.settings = point.settings
        ratio, _ = time_against_whole(ghost, inputs, batch)
        say(f"{describe_settings(point.settings)}: foretold {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if ratio <= budget:
            return point
        fastest = min(fastest, ratio)
    ghost.settings = Settings()
    why = (
        f"the fastest of its settings takes {100 * fastest:.0f} % of the whole network's time"
        if fastest < math.inf
        else f"computing as little as it can leaves {100 * min(p.time for p in points):.0f} % of the whole network's time"
    )
    raise DeepresError(f"a budget of {budget:g} cannot be kept at batch {batch}: {why}; allow more")


def describe_settings(settings: Settings) -> str:
    """What a ghost does, briefly."""
    if settings.whole:
        return "the whole network"
    said = []
    if settings.skip is not None:
        said.append("the same blocks passed through for all" if settings.fixed else "blocks passed through by input")
    if settings.leave is not None:
        said.append(f"leaving at a confidence of {settings.leave:g}" + (" of the exits' mean" if settings.mean else ""))
    if settings.sure:
        said.append(f"again in full below {settings.sure:g}")
    return ", ".join(said)


@torch.no_grad()
def keeps_deadline(ghost: Ghost, inputs: Tensor, batch: int, *, calls: int = 100) -> tuple[float, float]:
    """(share of calls within ``ghost.deadline``, the slowest call's seconds), over ``calls`` calls at this batch."""
    assert ghost.deadline is not None
    pieces = itertools.cycle(piece for piece in inputs.split(batch) if len(piece) == batch)
    took = call_times(lambda: ghost(next(pieces)), inputs.device, repeats=calls, warmup=3)
    return sum(t <= ghost.deadline for t in took) / len(took), max(took)


def fastest(
    ghost: Ghost,
    candidates: Sequence[Point],
    whole: Point,
    inputs: Tensor,
    batch: int,
    say: Callable[[str], None] = lambda text: None,
) -> Point:
    """The candidate whose *measured* time at this batch is the least; also sets it.

    It is ``whole`` if none is faster in all but a quarter of the turns: a time that is below 1 by luck is above it elsewhere.
    """
    chosen, least = whole, 1.0
    for point in candidates:
        ghost.settings = point.settings
        ratio, (_, high) = time_against_whole(ghost, inputs, batch)
        say(f"{describe_settings(point.settings)}: foretold {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
        if high < 1 and ratio < least:
            chosen, least = point, ratio
    ghost.settings = chosen.settings
    return chosen
