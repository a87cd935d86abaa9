"""Fit exits to a frozen network: what each does to the signal before it pools, its classifier, and its temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.ghost.heads import Exit, without_norms
from deepres.ghost.look import at_chunks
from deepres.ghost.route import Ghost
from deepres.nn import logits_of
from deepres.sites import learnt, pooled_by_quarter, readers

PASSES, BATCH, RATE, DECAY = 20, 128, 3e-3, 0.05  # of what exits learn to read with, by AdamW in one cycle
ROOM = 2 << 30  # bytes of signals that are kept


def learn_to_read(
    ghost: Ghost, given: Sequence[tuple[Tensor, Tensor]], watch: Callable[[str, float], None] = lambda what, share: None
) -> Sequence[nn.Sequential]:
    """For each chunk but the last what an exit there does to the signal before it pools, trained on the frozen network.

    All of them learn at once, with a classifier behind each, which is dropped: ``fit_exit`` fits it anew.
    """
    images, labels = (torch.cat(column) for column in zip(*given, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, logits = _signals(ghost, images[:2])
        reading = [one.to(images.device) for one in readers([first[c] for c in sorted(first)])]
        at = [c for c, reader in enumerate(reading) if len(reader)]
        if not at:
            return reading
        widths = [pooled_by_quarter(reading[c].eval()(first[c])).shape[1] for c in at]
        answers = nn.ModuleList([nn.Linear(width, logits.shape[1]) for width in widths]).to(images.device)
        rows = torch.cat([torch.randperm(len(labels)) for _ in range(PASSES)]).to(images.device).split(BATCH)
    seen = _Kept.of(ghost, images, at) if sum(first[c].nbytes for c in at) / 2 * len(images) <= ROOM else None
    learning = nn.ModuleList([answers, *(reading[c] for c in at)]).train()
    optimizer = torch.optim.AdamW(learning.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, len(rows))
    for done, mine in enumerate(rows):
        watch("exits", done / len(rows))
        signals, logits = seen.take(mine) if seen is not None else _signals(ghost, images[mine])
        wanted = learnt(logits, labels[mine])
        with torch.enable_grad():
            said = [answer(pooled_by_quarter(reading[c](signals[c]))) for c, answer in zip(at, answers, strict=True)]
            loss = torch.stack([F.cross_entropy(one, wanted) for one in said]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return [without_norms(reader) for reader in reading]


@torch.no_grad()
def _signals(ghost: Ghost, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Behind each chunk, and the network's answer."""
    signals: dict[int, Tensor] = {}
    with at_chunks(ghost, leave=signals.__setitem__):
        logits = logits_of(ghost.net, images).float()
    return {c: signal.float() for c, signal in signals.items()}, logits


@dataclass(frozen=True, eq=False)
class _Kept:
    """The signals of all examples, where there is room for them: the network then runs once instead of in every pass."""

    signals: dict[int, Tensor]
    logits: Tensor

    @classmethod
    def of(cls, ghost: Ghost, images: Tensor, at: Sequence[int]) -> _Kept:
        parts = [_signals(ghost, part) for part in images.split(BATCH)]
        return cls({c: torch.cat([one[c] for one, _ in parts]) for c in at}, torch.cat([logits for _, logits in parts]))

    def take(self, rows: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        return {c: signal[rows] for c, signal in self.signals.items()}, self.logits[rows]


def temperature_of(logits: Tensor, labels: Tensor) -> Tensor:
    """What to divide ``logits`` by so that they are as sure as they are right (Guo et al. 2017)."""
    choices = torch.logspace(-0.7, 1.0, 60)
    return choices[torch.stack([F.cross_entropy(logits / t, labels) for t in choices]).argmin()]


def fit_exit(features: Tensor, wanted: Tensor, held: Tensor, labels: Tensor, reader: nn.Sequential) -> Exit:
    """A classifier of what ``reader`` reads; its temperature from labels it has not seen."""
    head = Exit(features.shape[1], wanted.shape[1], reader)
    head.standardise(features)
    z = head.standardised(features)
    weight = torch.zeros_like(head.weight).requires_grad_()
    bias = torch.zeros_like(head.bias).requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, wanted) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        head.temperature.copy_(temperature_of(head.linear(held)[0], labels))
    return head
