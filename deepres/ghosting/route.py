"""A network that spends its depth by input: blocks are passed through as ghosts, and decided inputs leave early.

The blocks of a network are divided into *segments*. In front of a segment one gate looks at the pooled signal and says which of its
blocks matter for which input; behind a segment an exit looks at the pooled signal and lets go of the inputs whose answer is settled.
What is not needed is not computed: inputs are gathered, and only their rows written back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import can_delete, delete_blocks, find_blocks, logits_in, segments
from deepres.errors import DeepresError
from deepres.evaluation.timing import now
from deepres.ghosting.heads import Exit, Gate, Said, SaidOfOne
from deepres.ghosting.settings import Settings


@dataclass
class Trace:
    """Which blocks ran for each input of a call."""

    ran: Tensor  # (N, blocks) of truth values
    left: Tensor  # (N,): the segment behind which the input left, counted from 0; -1 for one that went to the end
    again: Tensor  # (N,) of truth values: answered again with the full depth


@dataclass
class _Call:
    """One forward pass under way."""

    n: int
    settings: Settings
    rows: Tensor  # of the original batch, of the inputs that are still inside
    trace: Trace | None
    deadline: float | None = None  # on the clock
    kept: Tensor | None = None  # (rows, skippable blocks of this segment) of truth values; None: all
    counts: list[int] = field(default_factory=list)  # of the rows that are kept, by skippable block
    record: bool = False  # note every exit's answer, and let nobody go
    quiet: frozenset[int] = frozenset()  # blocks at which there is nothing to decide
    ghosted: Tensor | None = None  # (N,) of truth values: some block was passed through
    answers: Tensor | None = None  # (N, classes) of those who left
    said: Said | SaidOfOne | None = None  # by the exits so far, of the inputs that are still inside
    exits: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # by segment: logits and confidences


class _Everyone(Exception):
    """All inputs have left; nothing behind needs to run."""


_NOW: ContextVar[_Call | None] = ContextVar("ghost", default=None)


class Ghost(nn.Module):
    """``net`` with a depth per input. Called like it.

    With the default settings the outputs are ``net``'s own, to the bit. The answer for an input does not depend on what else is in
    the batch (up to the rounding of the convolutions' own batching).
    """

    def __init__(self, net: nn.Module, settings: Settings | None = None, *, most: int = 5) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval()
        self.net.requires_grad_(False)
        self.units = find_blocks(self.net)
        if not any(not unit.reshapes for unit in self.units):
            raise DeepresError("the network has no residual block that could be passed through, so it cannot be made a ghost")
        self.segments = segments(self.units, most)
        self.gates = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.exits = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.settings = settings or Settings()
        self.deadline: float | None = None  # seconds for a call
        self.ahead = [(0.0, 0.0)] * len(
            self.segments
        )  # seconds from behind each segment to behind the next: of a call, and of a row
        self.temperature = 1.0  # of the network's own answer, where it is one of those that a mean is taken of
        self.trace: Trace | None = None  # of the last call, where it was asked for
        self._where = {i: (c, place) for c, segment in enumerate(self.segments) for place, i in enumerate(segment.units)}
        self._routed = False
        self._quiet = (Settings(), frozenset(range(len(self.units))))

    def route(self, on: bool) -> None:
        """Let the blocks' calls go through the ghost, or straight to the blocks, as the whole network's do: at no cost at all."""
        if on != self._routed:
            for i, unit in enumerate(self.units):
                block = unit.sites[0].block
                if on:
                    object.__setattr__(block, "forward", partial(self._block, i, block.forward))
                else:
                    del block.__dict__["forward"]
            self._routed = on

    def static(self) -> nn.Module:
        """The network without the blocks that a fixed setting passes through for all inputs: an ordinary one of its class.

        Its shapes do not depend on the data, so ``torch.compile``, ``torch.export`` and CUDA graphs take it.
        Raises ``DeepresError`` for settings that decide by input.
        """
        settings = self.settings
        if settings.leave is not None or (settings.skip is not None and not settings.fixed):
            raise DeepresError(
                "which blocks run depends on the input here; make the ghost with gates='fixed' and exits=False for one whose shapes are "
                "static"
            )
        self.route(False)
        net = copy.deepcopy(self.net)
        units = find_blocks(net)
        through = [
            i
            for c, segment in enumerate(self.segments)
            if (kept := self._kept_by_all(c, settings)) is not None
            for i, keeps in zip(segment.skippable, kept.tolist(), strict=True)
            if not keeps
        ]
        for i in reversed(through):  # from the end, so that the paths in front stay right
            if units[i].removable and can_delete(net, units[i].path):
                delete_blocks(net, [units[i].path])
            else:  # the only one of its list: what comes behind its sum is left
                site = units[i].sites[0]
                net.set_submodule(units[i].path, site.activation or nn.Identity())
        return net

    def train(self, mode: bool = True) -> Ghost:
        """Stays in eval mode; gates and exits are fitted, not trained through."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ghost:
        raise DeepresError("a ghost cannot be copied; make it again from its network, or load it from its file")

    @torch.no_grad()
    def forward(self, *args: Any, trace: bool = False, **kwargs: Any) -> Any:
        """Called as the network is. Logits (N, classes), or what the network's own library wraps them in.

        ``trace``: note in ``self.trace`` which blocks ran for each input.
        """
        if self.settings.whole and self.deadline is None and not trace:
            self.route(False)
            return self.net(*args, **kwargs)
        out, call = self._pass(args, kwargs, self.settings, trace)
        self.trace = call.trace
        if call.answers is None and call.said is None and not self._doubts(call):
            return out
        last = logits_in(out).float() if out is not None else None
        if last is not None and call.said is not None:
            last = self.with_exits(last, call.said)
        answers = call.answers if call.answers is not None else last
        assert answers is not None
        if last is not None and call.answers is not None:
            answers[call.rows] = last.to(answers.dtype)
        if last is not None and self._doubts(call):
            answers = self._again(args, kwargs, answers, last, call)
        return _wrapped(out, answers)

    def with_exits(self, last: Tensor, said: Said | SaidOfOne) -> Tensor:
        """(N, classes): the mean of the network's answer, calibrated, and of those that the exits gave before it."""
        if isinstance(said, SaidOfOne):
            return ((last / self.temperature).log_softmax(1) + torch.from_numpy(said.total)) / (said.count + 1)
        return Said.of(said, last / self.temperature, last.new_ones(len(last), dtype=torch.bool)).mean

    @torch.no_grad()
    def record(self, x: Tensor, settings: Settings) -> tuple[Tensor, Trace, list[tuple[Tensor, Tensor] | None]]:
        """(logits, trace, each exit's logits and confidences) of a pass in which nobody leaves and nothing is answered again."""
        out, call = self._pass((x,), {}, replace(settings, leave=None, sure=0.0), True, record=True)
        assert call.trace is not None
        return logits_in(out).float(), call.trace, call.exits

    def _pass(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings, trace: bool, *, record: bool = False
    ) -> tuple[Any, _Call]:
        self.route(True)
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        n, blocks = len(x), len(self.units)
        noted = None
        if trace:
            yes = torch.zeros(n, blocks, dtype=torch.bool)
            noted = Trace(yes, torch.full((n,), -1), torch.zeros(n, dtype=torch.bool))
        call = _Call(n, settings, torch.arange(n, device=x.device), noted, record=record)
        if not (trace or record or self.deadline is not None):
            call.quiet = self._quiet_with(settings)
        if self.deadline is not None:
            call.deadline = now(x.device) + self.deadline
        token = _NOW.set(call)
        out: Any = None
        try:
            out = self.net(*args, **kwargs)
        except _Everyone:
            pass
        finally:
            _NOW.reset(token)
        return out, call

    def _quiet_with(self, settings: Settings) -> frozenset[int]:
        """The blocks at which these settings decide nothing: their calls cost no more than one function call."""
        if self._quiet[0] != settings:
            busy: set[int] = set()
            for c, segment in enumerate(self.segments):
                if settings.skip is not None:
                    busy.add(segment.units[0])  # forgets what the segment before was judged
                    if settings.asks_gate(c):
                        busy |= set(segment.skippable)
                if settings.asks_exit(c):
                    busy.add(segment.units[-1])
            self._quiet = (settings, frozenset(range(len(self.units))) - busy)
        return self._quiet[1]

    @staticmethod
    def _doubts(call: _Call) -> bool:
        return call.settings.sure > 0 and call.ghosted is not None and call.deadline is None

    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any], answers: Tensor, last: Tensor, call: _Call) -> Tensor:
        """Inputs that were skipped through and are not sure get the whole network."""
        assert call.ghosted is not None
        doubtful = (last.softmax(1).amax(1) < call.settings.sure) & call.ghosted[call.rows]
        rows = call.rows[doubtful]
        if len(rows):
            answers = answers.clone()
            mine = _gather(rows, call.n, args, kwargs)
            answers[rows] = logits_in(self.net(*mine[0], **mine[1])).float()
            if call.trace is not None:
                call.trace.again[rows.cpu()] = True
        return answers

    def _kept_by_all(self, c: int, settings: Settings) -> Tensor | None:
        """(skippable blocks,): which of segment ``c`` a fixed setting computes; None for all of them."""
        gate = self.gates[c]
        if settings.skip is None or not isinstance(gate, Gate) or not settings.asks_gate(c):
            return None
        return gate.bias >= settings.skip

    # ---- inside the network

    def _block(self, i: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = _NOW.get()
        if call is None or (i in call.quiet and len(args) == 1 and not kwargs):
            return original(*args, **kwargs)
        if not args:  # some libraries name the signal
            name = next(iter(kwargs))
            args, kwargs = (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
        x, *more = args
        segment, place = self._where[i]
        if place == 0:
            call.kept = self._judge(segment, x, call)
        rest = tuple(more)
        if len(call.rows) < call.n:  # of what comes for the whole batch, such as masks, the rows of those who are inside
            rest, kwargs = _gather(call.rows, call.n, rest, kwargs)
        out = self._run(i, segment, original, x, rest, kwargs, call)
        if place == len(self.segments[segment].units) - 1:
            out = self._leave(segment, out, call)
        return out

    def _judge(self, c: int, x: Tensor, call: _Call) -> Tensor | None:
        """(rows, skippable blocks): which blocks of the segment are computed; None for all of them."""
        gate, settings = self.gates[c], call.settings
        if not isinstance(gate, Gate) or not settings.asks_gate(c):
            return None
        if settings.fixed and (by_all := self._kept_by_all(c, settings)) is not None:
            call.counts = [len(x) * int(one) for one in by_all.tolist()]
            return by_all[None]  # one row for all
        kept = gate(x) >= settings.skip
        call.counts = (kept[0] if len(kept) == 1 else kept.sum(0)).tolist()  # once for the segment, since a GPU is waited for
        if settings.sure > 0 or call.record:
            if call.ghosted is None:
                call.ghosted = torch.zeros(call.n, dtype=torch.bool, device=x.device)
            call.ghosted[call.rows] |= (~kept).any(1)
        return kept

    def _run(
        self,
        i: int,
        c: int,
        original: Callable[..., Any],
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: _Call,
    ) -> Any:
        skippable = self.segments[c].skippable
        if call.kept is None or i not in skippable:
            if call.trace is not None:
                call.trace.ran[call.rows.cpu(), i] = True
            return original(x, *args, **kwargs)
        place = skippable.index(i)
        keep, count = call.kept[:, place], int(call.counts[place])
        if call.trace is not None:
            call.trace.ran[call.rows[keep if len(keep) == len(x) else keep.expand(len(x))].cpu(), i] = True
        if count == len(x):
            return original(x, *args, **kwargs)
        site = self.units[i].sites[0]
        through = x if site.is_inner else site.without_branch(x)  # a Transformer's whole layer passes x itself
        if count == 0:
            return through
        index = keep.nonzero().squeeze(1)
        moved = _gather(index, len(x), args, kwargs)
        out = original(x.index_select(0, index), *moved[0], **moved[1])
        if isinstance(out, tuple):
            return (through.index_copy(0, index, out[0].to(through.dtype)), *out[1:])
        return through.index_copy(0, index, out.to(through.dtype))

    def _leave(self, c: int, out: Any, call: _Call) -> Any:
        """Let go of the inputs whose answer is settled behind segment ``c``, and of all where time runs out."""
        head = self.exits[c]
        signal = out[0] if isinstance(out, tuple) else out
        if call.record:
            call.exits.append(head(signal) if isinstance(head, Exit) else None)
            return out
        late = False
        if call.deadline is not None:
            base, each = self.ahead[c]
            late = now(signal.device) + base + each * len(call.rows) > call.deadline
        if not isinstance(head, Exit) or not (late or call.settings.asks_exit(c)):
            return out
        if len(call.rows) == 1 and signal.device.type == "cpu":
            return self._leave_alone(c, head, signal, out, call, late)
        logits, confidence = head(signal)
        if call.settings.mean:
            assert not isinstance(call.said, SaidOfOne)
            call.said, logits, confidence = Said.hear(call.said, logits, confidence)
        done = torch.ones_like(confidence, dtype=torch.bool) if late else confidence >= call.settings.leave
        count = int(done.sum())
        if count == 0:
            return out
        if call.answers is None:
            call.answers = logits.new_zeros(call.n, logits.shape[1])
        call.answers[call.rows[done]] = logits[done]
        if call.trace is not None:
            call.trace.left[call.rows[done].cpu()] = c
        if count == len(call.rows):
            call.rows = call.rows[:0]
            call.said = None
            raise _Everyone
        stay = (~done).nonzero().squeeze(1)
        call.rows = call.rows[stay]
        if isinstance(call.said, Said):
            call.said = call.said.take(stay)
        signal = signal.index_select(0, stay)
        return (signal, *out[1:]) if isinstance(out, tuple) else signal

    def _leave_alone(self, c: int, head: Exit, signal: Tensor, out: Any, call: _Call, late: bool) -> Any:
        """The same for the only input that is inside."""
        answer, confidence = head.of_one(signal)
        if call.settings.mean:
            call.said, answer, confidence = SaidOfOne.hear(call.said, answer, confidence)
        if not late and confidence < (call.settings.leave or 0):
            return out
        logits = torch.from_numpy(answer).unsqueeze(0)
        if call.answers is None:
            call.answers = logits if call.n == 1 else logits.new_zeros(call.n, logits.shape[1])
        if call.n > 1:
            call.answers[call.rows] = logits
        if call.trace is not None:
            call.trace.left[call.rows.cpu()] = c
        call.rows, call.said = call.rows[:0], None
        raise _Everyone


def _gather(index: Tensor, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def pick(value: Any) -> Any:
        return value.index_select(0, index) if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n else value

    return tuple(map(pick, args)), {key: pick(value) for key, value in kwargs.items()}


@dataclass
class Answer:
    """Logits of a network whose library wraps them."""

    logits: Tensor


def _wrapped(out: Any, logits: Tensor) -> Any:
    return logits if out is None or isinstance(out, Tensor) else Answer(logits)
