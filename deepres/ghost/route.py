"""A network that spends its depth by input: blocks are passed through as ghosts, and decided inputs leave early.

The blocks of a network are divided into *chunks*. In front of a chunk one gate looks at the pooled signal and says which of its
blocks matter for which input; behind a chunk an exit looks at the pooled signal and lets go of the inputs whose answer is settled.
What is not needed is not computed: inputs are gathered, and only their rows written back.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn import logits_in
from deepres.sites import Unit, find_units


def pooled(signal: Tensor) -> Tensor:
    """(N, C): the mean over places of (N, C, H, W), or over tokens of (N, L, C)."""
    return signal.mean((2, 3)) if signal.ndim == 4 else signal.mean(1)


class Gate(nn.Module):
    """What a chunk's blocks are worth for an input: the predicted log10 of how far its answer moves without each of them.

    A linear function of the pooled signal. Where that lies far from what the gate was fitted on (``strange``), it says nothing and
    every block is kept.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    limit: Tensor

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(blocks, channels))
        self.register_buffer("bias", torch.zeros(blocks))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("limit", torch.tensor(float("inf")))  # of the mean square of the standardised signal

    def forward(self, signal: Tensor) -> Tensor:
        """(N, C, ...) -> (N, blocks); infinite where the signal is strange."""
        z = (pooled(signal).float() - self.mean) / self.deviation
        worth = torch.addmm(self.bias, z, self.weight.T)
        strange = z.square().mean(1, keepdim=True) > self.limit
        return worth.masked_fill(strange, float("inf"))


class Exit(nn.Module):
    """An answer from a chunk's output: a linear classifier on the pooled signal, with a calibrated temperature."""

    temperature: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, signal: Tensor) -> Tensor:
        """(N, C, ...) -> (N, classes) logits, calibrated."""
        return self.fc(pooled(signal).float()) / self.temperature


@dataclass(frozen=True)
class Settings:
    """When a block is a ghost and when an input leaves. The default is the whole network."""

    skip: float | None = (
        None  # blocks whose predicted worth, per share of the time, is below this are passed through; None: none
    )
    leave: float | None = None  # inputs leave at an exit whose confidence is at least this; None: none does
    sure: float = 0.0  # inputs that were skipped through and end below this confidence are answered again with the full depth

    @property
    def whole(self) -> bool:
        return self.skip is None and self.leave is None


@dataclass
class Trace:
    """Which blocks ran for each input of a call."""

    ran: Tensor  # (N, blocks) of truth values
    left: Tensor  # (N,): the chunk behind which the input left, counted from 0; -1 for one that went to the end
    again: Tensor  # (N,) of truth values: answered again with the full depth


@dataclass
class _Call:
    """One forward pass under way."""

    n: int
    settings: Settings
    rows: Tensor  # of the original batch, of the inputs that are still inside
    trace: Trace | None
    deadline: float | None = None  # on the clock
    kept: Tensor | None = None  # (rows, blocks of this chunk)
    ghosted: Tensor | None = None  # (N,) of truth values: some block was passed through
    answers: Tensor | None = None  # (N, classes) of those who left
    answered: list[Tensor] = field(default_factory=list)


class _Everyone(Exception):
    """All inputs have left; nothing behind needs to run."""


_NOW: ContextVar[_Call | None] = ContextVar("ghost", default=None)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive blocks that share a gate in front and an exit behind."""

    units: tuple[int, ...]
    skippable: tuple[int, ...]  # of them, those that can be ghosts


def chunks(units: Sequence[Unit], most: int = 5) -> list[Chunk]:
    """Cut each list of blocks into runs of at most ``most``."""
    groups: list[list[int]] = []
    before = None
    for i, unit in enumerate(units):
        here = unit.container
        if here != before:
            groups.append([])
        groups[-1].append(i)
        before = here
    cut = []
    for group in groups:
        parts = -(-len(group) // most)
        bounds = [len(group) * part // parts for part in range(parts + 1)]
        cut += [group[a:b] for a, b in pairwise(bounds)]
    return [Chunk(tuple(group), tuple(i for i in group if not units[i].reshapes)) for group in cut]


class Ghost(nn.Module):
    """``net`` with a depth per input. Called like it.

    With the default settings the outputs are ``net``'s own, to the bit. The answer for an input does not depend on what else is in
    the batch (up to the rounding of the convolutions' own batching).
    """

    def __init__(self, net: nn.Module, settings: Settings | None = None, *, most: int = 5) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval()
        self.net.requires_grad_(False)
        self.units = find_units(self.net)
        if not any(not unit.reshapes for unit in self.units):
            raise DeepresError("the network has no residual block that could be passed through, so it cannot be made a ghost")
        self.chunks = chunks(self.units, most)
        self.gates = nn.ModuleList([nn.Identity() for _ in self.chunks])
        self.exits = nn.ModuleList([nn.Identity() for _ in self.chunks])
        self.settings = settings or Settings()
        self.deadline: float | None = None  # seconds for a call
        self.ahead = [0.0] * len(self.chunks)  # seconds that one input needs behind each chunk, for the deadline
        self.trace: Trace | None = None  # of the last call, where it was asked for
        self._where = {i: (c, place) for c, chunk in enumerate(self.chunks) for place, i in enumerate(chunk.units)}
        for i, unit in enumerate(self.units):
            block = unit.sites[0].block
            object.__setattr__(block, "forward", partial(self._block, i, block.forward))

    def train(self, mode: bool = True) -> Ghost:
        """Stays in eval mode; gates and exits are fitted, not trained through."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ghost:
        raise DeepresError("a ghost cannot be copied; make it again from its network, or load it from its file")

    @torch.no_grad()
    def forward(self, x: Tensor, *, trace: bool = False) -> Any:
        """Logits (N, classes), or what the network's own library wraps them in.

        ``trace``: note in ``self.trace`` which blocks ran for each input.
        """
        settings = self.settings
        if settings.whole and self.deadline is None and not trace:
            return self.net(x)
        n, blocks = len(x), len(self.units)
        noted = None
        if trace:
            yes = torch.zeros(n, blocks, dtype=torch.bool)
            noted = Trace(yes, torch.full((n,), -1), torch.zeros(n, dtype=torch.bool))
        call = _Call(n, settings, torch.arange(n, device=x.device), noted)
        if self.deadline is not None:
            call.deadline = time.perf_counter() + self.deadline
        token = _NOW.set(call)
        out: Any = None
        try:
            out = self.net(x)
        except _Everyone:
            pass
        finally:
            _NOW.reset(token)
        self.trace = noted
        if call.answers is None and not self._doubts(settings, call):
            return out
        last = logits_in(out).float() if out is not None else None
        answers = call.answers if call.answers is not None else last
        assert answers is not None
        if last is not None and call.answers is not None:
            answers[call.rows] = last.to(answers.dtype)
        if last is not None and self._doubts(settings, call):
            answers = self._again(x, answers, last, call)
        return _wrapped(out, answers)

    @staticmethod
    def _doubts(settings: Settings, call: _Call) -> bool:
        return settings.sure > 0 and call.ghosted is not None

    def _again(self, x: Tensor, answers: Tensor, last: Tensor, call: _Call) -> Tensor:
        """Inputs that were skipped through and are not sure get the whole network."""
        assert call.ghosted is not None
        doubtful = (last.softmax(1).amax(1) < call.settings.sure) & call.ghosted[call.rows]
        rows = call.rows[doubtful]
        if len(rows):
            answers = answers.clone()
            answers[rows] = logits_in(self.net(x[rows])).float()
            if call.trace is not None:
                call.trace.again[rows.cpu()] = True
        return answers

    # ---- inside the network

    def _block(self, i: int, original: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = _NOW.get()
        if call is None:
            return original(x, *args, **kwargs)
        chunk, place = self._where[i]
        if place == 0:
            call.kept = self._judge(chunk, x, call)
        if len(call.rows) < call.n:
            args, kwargs = _mine(call, args, kwargs)
        out = self._run(i, chunk, original, x, args, kwargs, call)
        if place == len(self.chunks[chunk].units) - 1:
            out = self._leave(chunk, out, call)
        return out

    def _judge(self, c: int, x: Tensor, call: _Call) -> Tensor | None:
        """(rows, skippable blocks): which blocks of the chunk are computed; None for all of them."""
        gate = self.gates[c]
        if call.settings.skip is None or not isinstance(gate, Gate):
            return None
        kept = gate(x) >= call.settings.skip
        if call.settings.sure > 0:
            ghosted = (~kept).any(1)
            if call.ghosted is None:
                call.ghosted = torch.zeros(call.n, dtype=torch.bool, device=x.device)
            call.ghosted[call.rows] |= ghosted
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
        skippable = self.chunks[c].skippable
        if call.kept is None or i not in skippable:
            if call.trace is not None:
                call.trace.ran[call.rows.cpu(), i] = True
            return original(x, *args, **kwargs)
        keep = call.kept[:, skippable.index(i)]
        count = int(keep.sum())
        if call.trace is not None:
            call.trace.ran[call.rows[keep].cpu(), i] = True
        if count == len(x):
            return original(x, *args, **kwargs)
        through = x
        for site in self.units[i].sites[:1]:  # a Transformer's layer is x itself
            through = site.passed(x) if not site.row.part else x
        if count == 0:
            return through
        index = keep.nonzero().squeeze(1)
        moved = _gather(index, len(x), args, kwargs)
        out = original(x.index_select(0, index), *moved[0], **moved[1])
        if isinstance(out, tuple):
            return (through.index_copy(0, index, out[0].to(through.dtype)), *out[1:])
        return through.index_copy(0, index, out.to(through.dtype))

    def _leave(self, c: int, out: Any, call: _Call) -> Any:
        """Let go of the inputs whose answer is settled behind chunk ``c``, and of all where time runs out."""
        head = self.exits[c]
        late = False
        if call.deadline is not None:
            late = time.perf_counter() + self.ahead[c] * len(call.rows) > call.deadline
        if not isinstance(head, Exit) or (call.settings.leave is None and not late):
            return out
        signal = out[0] if isinstance(out, tuple) else out
        logits = head(signal)
        bar = call.settings.leave if call.settings.leave is not None else 2.0
        done = logits.softmax(1).amax(1) >= bar
        if late:
            done = torch.ones_like(done)
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
            raise _Everyone
        stay = (~done).nonzero().squeeze(1)
        call.rows = call.rows[stay]
        signal = signal.index_select(0, stay)
        return (signal, *out[1:]) if isinstance(out, tuple) else signal


def _mine(call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of what comes for the whole batch, such as masks, the rows of those who are still inside."""
    return _gather(call.rows, call.n, args, kwargs)


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
