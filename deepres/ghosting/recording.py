"""Recording of the signals between the segments of a network, over labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.adapters.calls import signal_in
from deepres.data import Data, Loader, seeded
from deepres.errors import DeepresError
from deepres.exits import pooled, pooled_by_quarter
from deepres.ghosting.model import Ghost


@dataclass(frozen=True, eq=False)
class SegmentSignals:
    """Pooled signals in front of and behind each segment, with logits and labels, over some examples."""

    entries: list[Tensor]  # (N, C), by segment
    outputs: list[Tensor]  # (N, F), by segment
    logits: Tensor  # (N, K)
    labels: Tensor


def batches(
    data: Data, split: str, most: int, device: torch.device, size: int = 128, *, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, labels) of up to ``most`` examples of a split, prepared for the network.

    The examples are drawn at random, but always the same ones; the first ``skip`` of the draw are left out.
    """
    part = getattr(data, split)
    index = torch.randperm(len(part), generator=seeded(0))[skip : skip + most].sort().values
    if not len(index):
        return
    for batch in Loader(part.take(index), data.prepare, min(size, len(index)), shuffle=False, device=device).epoch(0):
        if len(batch.labels):
            yield batch.images, batch.labels


@contextmanager
def at_segments(
    ghost: Ghost,
    *,
    entry: Callable[[int, Tensor], None] = lambda c, signal: None,
    output: Callable[[int, Tensor], None] = lambda c, signal: None,
) -> Iterator[None]:
    """In forward passes inside, call ``entry`` with each segment and its input, and ``output`` with each segment and its output."""
    with ExitStack() as stack:
        for c, segment in enumerate(ghost.segments):
            first, last = (ghost.blocks[i].sites[0].block for i in (segment.blocks[0], segment.blocks[-1]))
            before = first.register_forward_pre_hook(lambda _, args, c=c: entry(c, args[0]))
            behind = last.register_forward_hook(lambda _, __, out, c=c: output(c, signal_in(out)))
            stack.callback(before.remove)
            stack.callback(behind.remove)
        yield


@torch.no_grad()
def record_signals(ghost: Ghost, given: list[tuple[Tensor, Tensor]], readers: Sequence[nn.Module] = ()) -> SegmentSignals:
    """Run the whole network over ``given`` and record its signals. ``readers``: of the exits, applied before pooling."""

    def read(c: int, signal: Tensor) -> Tensor:
        return pooled_by_quarter(readers[c](signal) if c < len(readers) else signal)

    entries: list[list[Tensor]] = [[] for _ in ghost.segments]
    outputs: list[list[Tensor]] = [[] for _ in ghost.segments]
    with at_segments(
        ghost,
        entry=lambda c, signal: entries[c].append(pooled(signal).float().cpu()),
        output=lambda c, signal: outputs[c].append(read(c, signal).float().cpu()),
    ):
        logits = [logits_of(ghost.net, x).float().cpu() for x, _ in given]
    if logits[0].ndim != 2:
        raise DeepresError("a ghost classifies whole inputs, and this network gives an answer for every token")
    return SegmentSignals(
        [torch.cat(e) for e in entries],
        [torch.cat(o) for o in outputs],
        torch.cat(logits),
        torch.cat([y.cpu() for _, y in given]),
    )
