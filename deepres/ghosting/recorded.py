"""Recorded passes: the answers of each exit and the blocks that ran, from which all thresholds are evaluated."""

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

PASSES_ROOM = 1 << 30  # bytes of passes that are kept


class Passes:
    """Recorded passes of a ghost over labelled examples, one for each choice of blocks, made when first needed.

    One pass without early exits suffices for all exit thresholds, because an input that exits does not affect the others.
    """

    def __init__(self, ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.ghost, self.given = ghost, given
        self.labels = torch.cat([y.cpu() for _, y in given]) if given else torch.zeros(0, dtype=torch.long)
        self._made: dict[Settings, Recorded] = {}

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """All inputs, (N, ...)."""
        return torch.cat([x for x, _ in self.given])

    def of(self, settings: Settings) -> Recorded:
        """The pass with the blocks that ``settings`` select."""
        blocks = replace(settings, exit_threshold=None, exits=None, fallback_threshold=0.0, average=False)
        if blocks not in self._made:
            if sum(one.nbytes for one in self._made.values()) > PASSES_ROOM:
                self._made = {key: one for key, one in self._made.items() if key == Settings()}
            self._made[blocks] = Recorded.of(self.ghost, self.given, blocks)
        return self._made[blocks]

    @property
    def whole(self) -> Tensor:
        """Logits of the whole network, (N, classes)."""
        return self.of(Settings()).logits


ExitIndices = tuple[int, ...]  # segments behind which inputs may exit
ExitAnswers = tuple[Tensor, Tensor]  # answers (N,) and their confidences (N,)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Passes without early exits, with the answers of each exit and of the network."""

    ghost: Ghost
    logits: Tensor  # (N, classes)
    ran: Tensor  # (N, blocks) of truth values
    exits: dict[int, tuple[Tensor, Tensor]]  # by segment: calibrated logits (N, classes), confidences (N,)
    _answered: dict[tuple[ExitIndices, bool], tuple[dict[int, ExitAnswers], ExitAnswers]] = field(default_factory=dict)

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

    def exit_answers(self, used: ExitIndices, average: bool) -> tuple[dict[int, ExitAnswers], ExitAnswers]:
        """Answers of each exit in ``used``, by segment, and of the final classifier."""
        if (used, average) not in self._answered:
            found: dict[int, ExitAnswers] = {}
            sum_so_far: Average | None = None
            for c in used:
                logits, confidence = self.exits[c]
                if average:
                    sum_so_far, logits, confidence = Average.add(sum_so_far, logits, confidence)
                found[c] = (logits.argmax(1), confidence)
            last = self.logits if sum_so_far is None else sum_so_far.with_last(self.logits / self.ghost.temperature)
            self._answered[used, average] = found, (last.argmax(1), last.softmax(1).amax(1))
        return self._answered[used, average]

    def highest_confidence(self, settings: Settings) -> Tensor:
        """(N,) exit threshold below which each input exits early."""
        found, _ = self.exit_answers(self._used(settings), settings.average)
        return torch.stack([confidence for _, confidence in found.values()]).amax(0)

    def useful_gates(self, costs: Costs) -> tuple[int, ...]:
        """Segments whose gate saves more time than it costs."""
        saved = (~self.ran).float().mean(0) * costs.branches
        return tuple(
            c
            for c, segment in enumerate(self.ghost.segments)
            if float(saved[list(segment.blocks)].sum()) > float(costs.gates[c])
        )

    def with_useful_exits(self, settings: Settings, costs: Costs) -> Settings:
        """Drop the exits that cost more time than they save, from the last to the first."""

        def time_of(tried: Settings) -> float:
            return self._time(*self._exiting(tried)[1:], tried, costs)

        best, least = settings, time_of(settings)
        for c in sorted(settings.exits or (), reverse=True):
            fewer = replace(best, exits=tuple(one for one in best.exits or () if one != c))
            if (spent := time_of(fewer)) <= least:
                best, least = fewer, spent
        return best if best.exits else replace(settings, exit_threshold=None, exits=None, average=False)

    def _exiting(self, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
        """(answers, (N, blocks) whether a block is reached, (N,) whether an input does not exit early) with ``settings``."""
        reached = torch.ones_like(self.ran)
        inside = torch.ones(len(reached), dtype=torch.bool)
        found, (answer, _) = self.exit_answers(self._used(settings), settings.average)
        for c, (exit_answer, confidence) in found.items():
            exits = inside & (confidence >= (settings.exit_threshold or 0))
            answer = torch.where(exits, exit_answer, answer)
            reached[exits, self.ghost.segments[c].blocks[-1] + 1 :] = False
            inside &= ~exits
        return answer, reached, inside

    def _used(self, settings: Settings) -> ExitIndices:
        return tuple(c for c in sorted(self.exits) if settings.uses_exit(c))

    def _time(self, reached: Tensor, inside: Tensor, settings: Settings, costs: Costs) -> float:
        """Estimated time: blocks that are reached and run, layers between and around them, gates and exits in use.

        ``reached`` (N, blocks), ``inside`` (N,): inputs that do not exit early. Layers behind a block run for the inputs that reach the
        next one, and those behind the last block for the inputs that do not exit.
        """
        reaching, running = costs.paid(reached.float().mean(0)), costs.paid((self.ran & reached).float().mean(0))
        further = torch.cat((torch.ones(1), reaching[1:], costs.paid(inside.float().mean()[None])))
        spent = float((costs.blocks - costs.branches) @ reaching + costs.branches @ running + costs.outside @ further)
        for c, segment in enumerate(self.ghost.segments):
            here = reaching[segment.blocks[0]]
            if settings.uses_gate(c) and not settings.fixed:
                spent += float(here * costs.gates[c])
            if settings.uses_exit(c):
                spent += float(here * costs.exits[c])
        return spent

    def answers(self, settings: Settings, whole: Tensor) -> Tensor:
        """Answers (N,) with ``settings``; ``whole`` (N, classes): logits of the whole network, for the fallback."""
        return self._answers(settings, whole)[0]

    def _answers(self, settings: Settings, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answers, blocks that are reached, inputs that do not exit early, inputs that fall back)."""
        answer, reached, inside = self._exiting(settings)
        fallback = torch.zeros_like(inside)
        if settings.fallback_threshold > 0:
            confidence = self.exit_answers(self._used(settings), settings.average)[1][1]
            fallback = inside & ~self.ran.all(1) & (confidence < settings.fallback_threshold)
            answer = torch.where(fallback, whole.argmax(1), answer)
        return answer, reached, inside, fallback

    def point(self, settings: Settings, whole: Tensor, labels: Tensor, costs: Costs) -> Point:
        """Evaluate ``settings``; ``whole`` (N, classes): logits of the whole network, ``labels`` (N,)."""
        answer, reached, inside, fallback = self._answers(settings, whole)
        right = answer == labels
        return Point(
            settings,
            error=100 * (1 - float(right.float().mean())),
            time=self._time(reached, inside, settings, costs) + float(fallback.float().mean()),
            blocks=float((self.ran & reached).float().mean()),
            exited=1 - float(inside.float().mean()),
            changed=float((right != (whole.argmax(1) == labels)).float().mean()),
        )
