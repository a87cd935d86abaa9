"""Recorded passes: what a ghost answers at each exit and which blocks run, from which every threshold is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deepres.exits import Average
from deepres.ghosting.fit import Costs
from deepres.ghosting.model import Ghost
from deepres.ghosting.points import Point
from deepres.ghosting.settings import Settings

ROOM = 1 << 30  # bytes of passes that are kept


class Passes:
    """Recorded passes of a ghost over labelled examples, one for each choice of blocks, made when first needed.

    One pass without early exits serves every exit threshold, since an input that exits changes nothing for the others.
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
        blocks = replace(settings, exit_threshold=None, exits=None, fallback_threshold=0.0, average=False)
        if blocks not in self._made:
            if sum(one.nbytes for one in self._made.values()) > ROOM:
                self._made = {key: one for key, one in self._made.items() if key == Settings()}
            self._made[blocks] = Recorded.of(self.ghost, self.given, blocks)
        return self._made[blocks]

    @property
    def whole(self) -> Tensor:
        """(N, classes): the network's own answers."""
        return self.of(Settings()).logits


Exits = tuple[int, ...]
Answers = tuple[Tensor, Tensor]  # answers (N,) and their confidence (N,)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Passes without early exits: each exit's answers beside the network's."""

    ghost: Ghost
    logits: Tensor  # (N, classes)
    ran: Tensor  # (N, blocks) of truth values
    exits: dict[int, tuple[Tensor, Tensor]]  # by segment: calibrated logits (N, classes), confidences (N,)
    _answered: dict[tuple[Exits, bool], tuple[dict[int, Answers], Answers]] = field(default_factory=dict)

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

    def exit_answers(self, used: Exits, average: bool) -> tuple[dict[int, Answers], Answers]:
        """Answers of each exit in ``used``, by segment, and those at the end."""
        if (used, average) not in self._answered:
            found: dict[int, Answers] = {}
            sum_so_far: Average | None = None
            for c in used:
                logits, confidence = self.exits[c]
                if average:
                    sum_so_far, logits, confidence = Average.add(sum_so_far, logits, confidence)
                found[c] = (logits.argmax(1), confidence)
            last = self.logits if sum_so_far is None else sum_so_far.with_last(self.logits / self.ghost.temperature)
            self._answered[used, average] = found, (last.argmax(1), last.softmax(1).amax(1))
        return self._answered[used, average]

    def useful_gates(self, costs: Costs) -> tuple[int, ...]:
        """Segments whose gate saves more time than it takes."""
        saved = (~self.ran).float().mean(0) * costs.branches
        return tuple(
            c
            for c, segment in enumerate(self.ghost.segments)
            if float(saved[list(segment.units)].sum()) > float(costs.gates[c])
        )

    def with_useful_exits(self, settings: Settings, costs: Costs) -> Settings:
        """Without the exits that take more than they save, tried from the last to the first."""

        def time_of(tried: Settings) -> float:
            return self._time(self._exiting(tried)[1], tried, costs)

        best, least = settings, time_of(settings)
        for c in sorted(settings.exits or (), reverse=True):
            fewer = replace(best, exits=tuple(one for one in best.exits or () if one != c))
            if (spent := time_of(fewer)) <= least:
                best, least = fewer, spent
        return best if best.exits else replace(settings, exit_threshold=None, exits=None, average=False)

    def _exiting(self, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
        """(answers, blocks that are reached, inputs that do not exit early) with ``settings``."""
        reached = torch.ones_like(self.ran)
        inside = torch.ones(len(reached), dtype=torch.bool)
        found, (answer, _) = self.exit_answers(self._used(settings), settings.average)
        for c, (exit_answer, confidence) in found.items():
            goes = inside & (confidence >= (settings.exit_threshold or 0))
            answer = torch.where(goes, exit_answer, answer)
            reached[goes, self.ghost.segments[c].units[-1] + 1 :] = False
            inside &= ~goes
        return answer, reached, inside

    def _used(self, settings: Settings) -> Exits:
        return tuple(c for c in sorted(self.exits) if settings.uses_exit(c))

    def _time(self, reached: Tensor, settings: Settings, costs: Costs) -> float:
        """Estimated time: blocks that run of those reached, gates and exits in use, and what always runs."""
        reaching, running = costs.paid(reached.float().mean(0)), costs.paid((self.ran & reached).float().mean(0))
        spent = float((costs.blocks - costs.branches) @ reaching + costs.branches @ running) + costs.rest
        for c, segment in enumerate(self.ghost.segments):
            here = reaching[segment.units[0]]
            if settings.uses_gate(c) and not settings.fixed:
                spent += float(here * costs.gates[c])
            if settings.uses_exit(c):
                spent += float(here * costs.exits[c])
        return spent

    def answers(self, settings: Settings, whole: Tensor) -> Tensor:
        """(N,): the answers with ``settings``, where ``whole`` (N, classes) are the network's own."""
        return self._answers(settings, whole)[0]

    def _answers(self, settings: Settings, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answers, blocks that were reached, inputs that stayed to the end, inputs that fell back)."""
        answer, reached, inside = self._exiting(settings)
        fallback = torch.zeros_like(inside)
        if settings.fallback_threshold > 0:
            sure = self.exit_answers(self._used(settings), settings.average)[1][1]
            fallback = inside & ~self.ran.all(1) & (sure < settings.fallback_threshold)
            answer = torch.where(fallback, whole.argmax(1), answer)
        return answer, reached, inside, fallback

    def point(self, settings: Settings, whole: Tensor, labels: Tensor, costs: Costs) -> Point:
        """The point of ``settings``."""
        answer, reached, inside, fallback = self._answers(settings, whole)
        right = answer == labels
        return Point(
            settings,
            error=100 * (1 - float(right.float().mean())),
            time=self._time(reached, settings, costs) + float(fallback.float().mean()),
            blocks=float((self.ran & reached).float().mean()),
            left=1 - float(inside.float().mean()),
            moved=float((right != (whole.argmax(1) == labels)).float().mean()),
        )
