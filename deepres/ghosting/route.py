"""Routing inside a network: which rows a block computes, and which exit behind a segment.

The blocks of a network are divided into *segments*. In front of a segment a gate predicts from the pooled signal which of its blocks
matter for which input; behind a segment an exit head answers the inputs that it is confident of. Rows that are skipped are not
computed: the others are gathered, and written back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import find_blocks, segments
from deepres.errors import DeepresError
from deepres.evaluation.timing import now
from deepres.exits import Average, ExitHead, SingleAverage
from deepres.ghosting.context import CURRENT, AllExited, Pass, Trace, gather
from deepres.ghosting.gates import Gate
from deepres.ghosting.settings import Settings


class Router(nn.Module):
    """A network whose blocks' calls go through gates and exits. ``Ghost`` is the public class."""

    def __init__(self, net: nn.Module, settings: Settings | None = None, *, most: int = 5) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval()
        self.net.requires_grad_(False)
        self.units = find_blocks(self.net)
        if not any(not unit.reshapes for unit in self.units):
            raise DeepresError("the network has no residual block that could be skipped, so it cannot be made a ghost")
        self.segments = segments(self.units, most)
        self.ends = [self.units[segment.units[-1]].sites[0].block for segment in self.segments]
        self.gates = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.exits = nn.ModuleList([nn.Identity() for _ in self.segments])
        self.settings = settings or Settings()
        self.deadline: float | None = None  # seconds for a call
        # seconds from behind each segment to behind the next: (of a call, of a row)
        self.ahead = [(0.0, 0.0)] * len(self.segments)
        self.temperature = 1.0  # of the network's own answer, where it is part of an average
        self.trace: Trace | None = None  # of the last call with ``trace=True``
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

    def _quiet_with(self, settings: Settings) -> frozenset[int]:
        """The blocks at which these settings decide nothing: their calls cost no more than one function call."""
        if self._quiet[0] != settings:
            busy: set[int] = set()
            for c, segment in enumerate(self.segments):
                if settings.skip_threshold is not None:
                    busy.add(segment.units[0])  # forgets what the segment before was judged
                    if settings.uses_gate(c):
                        busy |= set(segment.skippable)
                if settings.uses_exit(c):
                    busy.add(segment.units[-1])
            self._quiet = (settings, frozenset(range(len(self.units))) - busy)
        return self._quiet[1]

    def _kept_by_all(self, c: int, settings: Settings) -> Tensor | None:
        """(skippable blocks,): which of segment ``c`` a fixed setting computes; None for all of them."""
        gate = self.gates[c]
        if settings.skip_threshold is None or not isinstance(gate, Gate) or not settings.uses_gate(c):
            return None
        return gate.bias >= settings.skip_threshold

    def _block(self, i: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
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
        if len(call.rows) < call.n:  # of what comes for the whole batch, such as masks, the rows of the inputs inside
            rest, kwargs = gather(call.rows, call.n, rest, kwargs)
        out = self._run(i, segment, original, x, rest, kwargs, call)
        if place == len(self.segments[segment].units) - 1:
            out = self._exit(segment, out, call)
        if call.full_head and i == len(self.units) - 1 and len(call.rows) < call.n:
            signal = out[0] if isinstance(out, tuple) else out
            full = signal.new_zeros(call.n, *signal.shape[1:]).index_copy(0, call.rows, signal)
            out = (full, *out[1:]) if isinstance(out, tuple) else full
        return out

    def _judge(self, c: int, x: Tensor, call: Pass) -> Tensor | None:
        """(rows, skippable blocks): which blocks of the segment are computed; None for all of them."""
        gate, settings = self.gates[c], call.settings
        if not isinstance(gate, Gate) or not settings.uses_gate(c):
            return None
        if settings.fixed and (by_all := self._kept_by_all(c, settings)) is not None:
            call.counts = [len(x) * int(one) for one in by_all.tolist()]
            return by_all[None]  # one row for all
        kept = gate(x) >= settings.skip_threshold
        call.counts = (kept[0] if len(kept) == 1 else kept.sum(0)).tolist()  # one wait for the GPU a segment
        if settings.fallback_threshold > 0 or call.record:
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
        skipped = self.units[i].without_branches(x)
        if count == 0:
            return skipped
        index = keep.nonzero().squeeze(1)
        moved = gather(index, len(x), args, kwargs)
        out = original(x.index_select(0, index), *moved[0], **moved[1])
        if isinstance(out, tuple):
            return (skipped.index_copy(0, index, out[0].to(skipped.dtype)), *out[1:])
        return skipped.index_copy(0, index, out.to(skipped.dtype))

    def _exit(self, c: int, out: Any, call: Pass) -> Any:
        """Answer the inputs that are confident enough behind segment ``c``, and all of them where the deadline would be missed."""
        head = self.exits[c]
        signal = out[0] if isinstance(out, tuple) else out
        if call.record:
            call.exits.append(head(signal) if isinstance(head, ExitHead) else None)
            return out
        late = False
        if call.deadline is not None:
            base, each = self.ahead[c]
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
            call.trace.left[call.rows[done].cpu()] = c
        if count == len(call.rows):
            call.rows = call.rows[:0]
            call.average = None
            raise AllExited
        stay = (~done).nonzero().squeeze(1)
        call.rows = call.rows[stay]
        if isinstance(call.average, Average):
            call.average = call.average.take(stay)
        signal = signal.index_select(0, stay)
        return (signal, *out[1:]) if isinstance(out, tuple) else signal

    def _exit_single(self, c: int, head: ExitHead, signal: Tensor, out: Any, call: Pass, late: bool) -> Any:
        """``_exit`` for a batch of one input, by NumPy."""
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
            call.trace.left[call.rows.cpu()] = c
        call.rows, call.average = call.rows[:0], None
        raise AllExited
