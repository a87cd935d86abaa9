"""The signals between the segments of a network, over labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.data import Data, Loader, seeded
from deepres.errors import DeepresError
from deepres.exits import pooled, pooled_by_quarter
from deepres.ghosting.model import Ghost


@dataclass(frozen=True, eq=False)
class Seen:
    """Pooled signals in front of and behind each segment, and answers, over some examples."""

    entries: list[Tensor]  # (N, C) each
    outputs: list[Tensor]
    logits: Tensor  # (N, K)
    labels: Tensor


def batches(
    data: Data, split: str, most: int, device: torch.device, size: int = 128, *, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to ``most`` examples of a split, always the same, as the network gets them; behind the first ``skip``."""
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
    enter: Callable[[int, Tensor], None] = lambda c, signal: None,
    leave: Callable[[int, Tensor], None] = lambda c, signal: None,
) -> Iterator[None]:
    """While open: ``enter`` gets each segment and the signal in front of it, ``leave`` the one behind."""
    with ExitStack() as stack:
        for c, segment in enumerate(ghost.segments):
            first, last = (ghost.units[i].sites[0].block for i in (segment.units[0], segment.units[-1]))
            before = first.register_forward_pre_hook(lambda _, args, c=c: enter(c, args[0]))
            behind = last.register_forward_hook(lambda _, __, out, c=c: leave(c, out[0] if isinstance(out, tuple) else out))
            stack.callback(before.remove)
            stack.callback(behind.remove)
        yield


@torch.no_grad()
def look(ghost: Ghost, given: list[tuple[Tensor, Tensor]], reading: Sequence[nn.Module] = ()) -> Seen:
    """One pass of the whole network. ``reading``: what the exits do to the segments' outputs before they pool."""

    def read(c: int, signal: Tensor) -> Tensor:
        return pooled_by_quarter(reading[c](signal) if c < len(reading) else signal)

    entries: list[list[Tensor]] = [[] for _ in ghost.segments]
    outputs: list[list[Tensor]] = [[] for _ in ghost.segments]
    with at_segments(
        ghost,
        enter=lambda c, signal: entries[c].append(pooled(signal).float().cpu()),
        leave=lambda c, signal: outputs[c].append(read(c, signal).float().cpu()),
    ):
        logits = [logits_of(ghost.net, x).float().cpu() for x, _ in given]
    if logits[0].ndim != 2:
        raise DeepresError("a ghost classifies whole inputs; this network gives an answer for every token")
    return Seen(
        [torch.cat(e) for e in entries],
        [torch.cat(o) for o in outputs],
        torch.cat(logits),
        torch.cat([y.cpu() for _, y in given]),
    )
