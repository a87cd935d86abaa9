"""Routing inside a network: blocks compute some of the rows, and exit heads answer some of the inputs.

The blocks of a network are divided into *segments*. In front of a segment, a gate predicts from the pooled signal which of its blocks
are important for which input. Behind a segment, an exit head answers the inputs for which it is confident. Rows that skip a block are
not computed: the other rows are gathered, and their results are written back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import as_written, find_blocks, segments
from deepres.adapters.calls import signal_in, with_signal
from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError
from deepres.evaluation.timing import now
from deepres.exits import Average, ExitHead, SingleAverage
from deepres.ghosting.context import CURRENT, AllExited, Pass, Trace, select_rows
from deepres.ghosting.gates import Gate
from deepres.ghosting.settings import Settings


@renamed_fields(units="blocks")
class Router(nn.Module):
    """Network whose blocks are called through gates and exits. ``Ghost`` is the public class."""

    def __init__(self, net: nn.Module, settings: Settings | None = None, *, most: int = 5) -> None:
        super().__init__()
        self.net = as_written(copy.deepcopy(net)).eval()
        self.net.requires_grad_(False)
        self.blocks = find_blocks(self.net)
        if not any(not block.reshapes for block in self.blocks):
            raise DeepresError("the network has no residual block that could be skipped, so no ghost can be made of it")
        self.segments = segments(self.blocks, most)
        self.ends = [self.blocks[segment.blocks[-1]].sites[0].block for segment in self.segments]
        self.gates = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.exits = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.settings = settings or Settings()
        self.deadline: float | None = None  # seconds for a call
        # seconds from the end of each segment to the next answer: (of a call, of each row)
        self.time_to_next = [(0.0, 0.0)] * len(self.segments)
        self.temperature = 1.0  # of the final classifier, where its answer is part of an average
        self.trace: Trace | None = None  # of the last call with ``trace=True``
        self._where = {i: (c, place) for c, segment in enumerate(self.segments) for place, i in enumerate(segment.blocks)}
        self._routed = False
        self._passive = (Settings(), frozenset(range(len(self.blocks))))

    def route(self, on: bool) -> None:
        """Call the blocks through gates and exits (``on``), or directly, at no cost."""
        if on != self._routed:
            for i, block in enumerate(self.blocks):
                module = block.sites[0].block
                if on:
                    object.__setattr__(module, "forward", partial(self._call, i, module.forward))
                else:
                    del module.__dict__["forward"]
            self._routed = on

    def _passive_with(self, settings: Settings) -> frozenset[int]:
        """The blocks at which these settings decide nothing, so that they are called directly."""
        if self._passive[0] != settings:
            active: set[int] = set()
            for c, segment in enumerate(self.segments):
                if settings.skip_threshold is not None:
                    active.add(segment.blocks[0])  # resets the decision of the segment before
                    if settings.uses_gate(c):
                        active |= set(segment.skippable)
                if settings.uses_exit(c):
                    active.add(segment.blocks[-1])
            self._passive = (settings, frozenset(range(len(self.blocks))) - active)
        return self._passive[1]

    def kept_by_all(self, c: int, settings: Settings) -> Tensor | None:
        """(skippable blocks,): whether a fixed setting computes each block of segment ``c``; None: all of them."""
        gate = self.gates[c]
        if settings.skip_threshold is None or not isinstance(gate, Gate) or not settings.uses_gate(c):
            return None
        return gate.bias >= settings.skip_threshold

    def skipped_by_all(self) -> list[int]:
        """The blocks that a fixed setting skips for every input."""
        found: list[int] = []
        for c, segment in enumerate(self.segments):
            kept = self.kept_by_all(c, self.settings) if self.settings.fixed else None
            if kept is not None:
                found += [i for i, keeps in zip(segment.skippable, kept.tolist(), strict=True) if not keeps]
        return found

    def depth_of_exits(self) -> Tensor:
        """(segments,): share of the blocks that run for an input that leaves behind each segment, where none is skipped by input.

        The last one is also the share of inputs that do not exit early.
        """
        skipped = set(self.skipped_by_all())
        ran = torch.tensor([sum(i not in skipped for i in segment.blocks) for segment in self.segments])
        return ran.cumsum(0) / len(self.blocks)

    def _call(self, i: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        if call is None or (i in call.passive and len(args) == 1 and not kwargs):
            return original(*args, **kwargs)
        if not args:  # some libraries pass the signal by name
            name = next(iter(kwargs))
            args, kwargs = (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
        x, *more = args
        segment, place = self._where[i]
        if place == 0:
            call.kept = self._gate(segment, x, call)
        rest = tuple(more)
        if len(call.rows) < call.n:  # arguments for the whole batch, such as masks, lose the rows that exited
            rest, kwargs = select_rows(call.rows, call.n, rest, kwargs)
        out = self._run(i, segment, original, x, rest, kwargs, call)
        if place == len(self.segments[segment].blocks) - 1:
            out = self._exit(segment, out, call)
        if call.full_head and i == len(self.blocks) - 1 and len(call.rows) < call.n:
            signal = signal_in(out)
            out = with_signal(out, signal.new_zeros(call.n, *signal.shape[1:]).index_copy(0, call.rows, signal))
        return out

    def _gate(self, c: int, x: Tensor, call: Pass) -> Tensor | None:
        """(rows, skippable blocks): whether each block of segment ``c`` is computed for each row; None: all of them."""
        gate, settings = self.gates[c], call.settings
        if not isinstance(gate, Gate) or not settings.uses_gate(c):
            return None
        if settings.fixed and (by_all := self.kept_by_all(c, settings)) is not None:
            call.counts = [len(x) * int(one) for one in by_all.tolist()]
            return by_all[None]  # one row for all
        kept = gate(x) >= settings.skip_threshold
        call.counts = (kept[0] if len(kept) == 1 else kept.sum(0)).tolist()  # the GPU is waited for once a segment
        if settings.fallback_threshold > 0 or call.record:
            if call.skipped is None:
                call.skipped = torch.zeros(call.n, dtype=torch.bool, device=x.device)
            call.skipped[call.rows] |= (~kept).any(1)
        return kept

    def _run(
        self,
        i: int,
        c: int,
        original: Callable[..., Any],
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: Pass,
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
        skipped = self.blocks[i].without_branches(x)
        if count == 0:
            return skipped
        index = keep.nonzero().squeeze(1)
        moved = select_rows(index, len(x), args, kwargs)
        out = original(x.index_select(0, index), *moved[0], **moved[1])
        return with_signal(out, skipped.index_copy(0, index, signal_in(out).to(skipped.dtype)))

    def _exit(self, c: int, out: Any, call: Pass) -> Any:
        """Let inputs exit behind segment ``c``: those with a confident answer, or all if the next exit would miss the deadline."""
        head, signal = self.exits[c], signal_in(out)
        if call.record:
            call.exits.append(head(signal) if isinstance(head, ExitHead) else None)
            return out
        late = False
        if call.deadline is not None:
            base, each = self.time_to_next[c]
            late = now(signal.device) + base + each * len(call.rows) > call.deadline
        if not isinstance(head, ExitHead) or not (late or call.settings.uses_exit(c)):
            return out
        if len(call.rows) == 1 and signal.device.type == "cpu":
            return self._exit_single(c, head, signal, out, call, late)
        logits, confidence = head(signal)
        if call.settings.average:
            assert not isinstance(call.average, SingleAverage)
            call.average, logits, confidence = Average.add(call.average, logits, confidence)
        done = torch.ones_like(confidence, dtype=torch.bool) if late else confidence >= call.settings.exit_threshold
        count = int(done.sum())
        if count == 0:
            return out
        if call.answers is None:
            call.answers = logits.new_zeros(call.n, logits.shape[1])
        call.answers[call.rows[done]] = logits[done]
        if call.trace is not None:
            call.trace.exited_at[call.rows[done].cpu()] = c
        if count == len(call.rows):
            call.rows = call.rows[:0]
            call.average = None
            raise AllExited
        stay = (~done).nonzero().squeeze(1)
        call.rows = call.rows[stay]
        if isinstance(call.average, Average):
            call.average = call.average.take(stay)
        return with_signal(out, signal.index_select(0, stay))

    def _exit_single(self, c: int, head: ExitHead, signal: Tensor, out: Any, call: Pass, late: bool) -> Any:
        """``_exit`` for one input on a CPU, in NumPy."""
        answer, confidence = head.single(signal)
        if call.settings.average:
            call.average, answer, confidence = SingleAverage.add(call.average, answer, confidence)
        if not late and confidence < (call.settings.exit_threshold or 0):
            return out
        logits = torch.from_numpy(answer).unsqueeze(0)
        if call.answers is None:
            call.answers = logits if call.n == 1 else logits.new_zeros(call.n, logits.shape[1])
        if call.n > 1:
            call.answers[call.rows] = logits
        if call.trace is not None:
            call.trace.exited_at[call.rows.cpu()] = c
        call.rows, call.average = call.rows[:0], None
        raise AllExited
