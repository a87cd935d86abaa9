"""Choose a ghost's settings: the frontier of error against time on the validation split, and what is fastest of it as measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.evaluate import time_against
from deepres.ghost.fit import Costs, look
from deepres.ghost.heads import Gate
from deepres.ghost.route import Ghost, Settings

LEAVES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # confidences that are tried
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of ghosted blocks that are tried
SURE = (0.0, 0.4, 0.6)
Kinds = tuple[Literal["fitted", "fixed"], ...]
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

    def of(self, settings: Settings) -> Recorded:
        """With the blocks that ``settings`` choose."""
        blocks = replace(settings, leave=None, exits=None, sure=0.0)
        if blocks not in self._made:
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
    ghost, labels, whole = passes.ghost, passes.labels, passes.whole
    choices: list[Settings] = [Settings()]
    for kind in kinds:
        choices += [Settings(skip, fixed=kind == "fixed") for skip in _thresholds(passes, kind == "fixed")]
    found: list[Point] = []
    for done, settings in enumerate(choices):
        watch("settings", done / len(choices))
        seen = passes.of(settings)
        if settings.skip is not None:
            useful = seen.useful_gates(ghost, costs)
            if not useful:
                continue
            if not settings.fixed and len(useful) < len(ghost.gates):
                settings = replace(settings, gates=useful)
                seen = passes.of(settings)
        tries = [settings]
        for leave in LEAVES:  # the first exits are the least sure of what they say, so later ones are tried alone too
            for start in sorted(seen.exits):
                tried = replace(settings, leave=leave, exits=tuple(c for c in seen.exits if c >= start))
                tries.append(seen.with_useful_exits(ghost, tried, costs))
        for tried in dict.fromkeys(tries):
            for sure in SURE if settings.skip is not None and not settings.fixed else (0.0,):
                found.append(seen.point(ghost, replace(tried, sure=sure), whole, labels, costs))
    return found


@dataclass(frozen=True, eq=False)
class Recorded:
    """Passes in which nobody left: each exit's answers beside the last ones."""

    logits: Tensor  # (N, classes)
    ran: Tensor  # (N, blocks) of truth values
    exits: dict[int, tuple[Tensor, Tensor]]  # by chunk: answers (N,) and confidences (N,)

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
                    exits.setdefault(c, []).append((answer[0].argmax(1).cpu(), answer[1].cpu()))
        joined = {c: (torch.cat([a for a, _ in many]), torch.cat([b for _, b in many])) for c, many in exits.items()}
        return cls(torch.cat(logits), torch.cat(ran), joined)

    def useful_gates(self, ghost: Ghost, costs: Costs) -> tuple[int, ...]:
        """Chunks whose gate saves more than it takes."""
        saved = (~self.ran).float().mean(0) * costs.branches
        return tuple(c for c, chunk in enumerate(ghost.chunks) if float(saved[list(chunk.units)].sum()) > float(costs.gates[c]))

    def with_useful_exits(self, ghost: Ghost, settings: Settings, costs: Costs) -> Settings:
        """Without the exits that take more than they save, tried from the last to the first."""
        best, least = settings, self._time(ghost, settings, costs)
        for c in sorted(settings.exits or (), reverse=True):
            fewer = replace(best, exits=tuple(one for one in best.exits or () if one != c))
            if (spent := self._time(ghost, fewer, costs)) <= least:
                best, least = fewer, spent
        return best if best.exits else replace(settings, leave=None, exits=None)

    def _leaving(self, ghost: Ghost, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answers, blocks that ran, blocks that were come to, inputs that are left) with ``settings``."""
        answer, ran, come = self.logits.argmax(1), self.ran.clone(), torch.ones_like(self.ran)
        inside = torch.ones(len(answer), dtype=torch.bool)
        bar = settings.leave if settings.leave is not None else math.inf
        for c in sorted(self.exits):
            if settings.exits is not None and c not in settings.exits:
                continue
            said, confidence = self.exits[c]
            goes = inside & (confidence >= bar)
            answer = torch.where(goes, said, answer)
            for told in (ran, come):
                told[goes, ghost.chunks[c].units[-1] + 1 :] = False
            inside &= ~goes
        return answer, ran, come, inside

    def _time(self, ghost: Ghost, settings: Settings, costs: Costs) -> float:
        """Foretold: blocks that run, gates and exits that are asked, and what always runs."""
        _, ran, come, _ = self._leaving(ghost, settings)
        spent = float((come.float() @ costs.blocks - (come & ~ran).float() @ costs.branches).mean()) + costs.rest
        for c, chunk in enumerate(ghost.chunks):
            here = come[:, chunk.units[0]].float().mean()  # share of the inputs that come so far
            if settings.skip is not None and not settings.fixed and (settings.gates is None or c in settings.gates):
                spent += float(here * costs.gates[c])
            if settings.leave is not None and (settings.exits is None or c in settings.exits):
                spent += float(here * costs.exits[c])
        return spent

    def answers(self, ghost: Ghost, settings: Settings, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answers, blocks that ran, inputs that stayed to the end, inputs that were answered again), as ``whole`` answers them."""
        answer, ran, _, inside = self._leaving(ghost, settings)
        again = torch.zeros_like(inside)
        if settings.sure > 0:
            again = inside & ~self.ran.all(1) & (self.logits.softmax(1).amax(1) < settings.sure)
            answer = torch.where(again, whole.argmax(1), answer)
        return answer, ran, inside, again

    def point(self, ghost: Ghost, settings: Settings, whole: Tensor, labels: Tensor, costs: Costs) -> Point:
        """What ``settings`` would have come to."""
        answer, ran, inside, again = self.answers(ghost, settings, whole)
        right = answer == labels
        return Point(
            settings,
            error=100 * (1 - float(right.float().mean())),
            time=self._time(ghost, settings, costs) + float(again.float().mean()),
            blocks=float(ran.float().mean()),
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
        return [float(values[count]) for count in range(1, len(values))]
    seen = look(passes.ghost, list(passes.given)[:8])
    every = []
    for c, gate in gates:
        worth = gate.linear(seen.entries[c].to(gate.weight.device))[0]
        every.append(worth.flatten().cpu())
    values = torch.cat(every).sort().values
    return [float(values[int(share * len(values))]) for share in SHARES]


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
        say(f"{settings_in_words(point.settings)}: foretold {100 * point.time:.0f} %, measured {100 * ratio:.0f} %")
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


def settings_in_words(settings: Settings) -> str:
    """What a ghost does, briefly."""
    if settings.whole:
        return "the whole network"
    said = []
    if settings.skip is not None:
        said.append("the same blocks passed through for all" if settings.fixed else "blocks passed through by input")
    if settings.leave is not None:
        said.append(f"leaving at a confidence of {settings.leave:g}")
    if settings.sure:
        said.append(f"again in full below {settings.sure:g}")
    return ", ".join(said)


@torch.no_grad()
def keeps_deadline(ghost: Ghost, inputs: Tensor, batch: int, *, calls: int = 100) -> tuple[float, float]:
    """(share of calls within ``ghost.deadline``, the slowest call's seconds), over ``calls`` calls at this batch."""
    assert ghost.deadline is not None
    pieces = [piece for piece in inputs.split(batch) if len(piece) == batch]
    took = []
    for i in range(calls + 3):
        began = time.perf_counter()
        ghost(pieces[i % len(pieces)])
        if inputs.is_cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    took = took[3:]
    return sum(t <= ghost.deadline for t in took) / len(took), max(took)


def fastest(
    ghost: Ghost,
    candidates: Sequence[Point],
    whole: Point,
    inputs: Tensor,
    batch: int,
    say: Callable[[str], None] = lambda text: None,
) -> Point:
    """The candidate whose *measured* time at this batch is the least, ``whole`` if none is below 1; also sets it."""
    measured = []
    for point in candidates:
        ghost.settings = point.settings
        measured.append(time_against_whole(ghost, inputs, batch)[0])
        say(f"{settings_in_words(point.settings)}: foretold {100 * point.time:.0f} %, measured {100 * measured[-1]:.0f} %")
    least = min(measured, default=1.0)
    chosen = candidates[measured.index(least)] if least < 1 else whole
    ghost.settings = chosen.settings
    return chosen
