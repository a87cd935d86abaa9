"""Fitting of exit heads to a frozen network: their readers, classifiers and temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.exits.heads import ExitHead, without_norms
from deepres.exits.readout import coarse, exit_targets, pooled_by_quarter, readers

PASSES, BATCH, RATE, DECAY = 20, 128, 3e-3, 0.05  # of AdamW with a one-cycle schedule
SIGNALS_ROOM = 2 << 30  # bytes of signals that are kept in memory
FIT_ROUNDS = 4  # passes of the network over the examples where their signals do not all fit into memory


def fit_readers(
    model: nn.Module,
    ends: Sequence[nn.Module],
    given: Sequence[tuple[Tensor, Tensor]],
    progress: Callable[[str, float], None] = lambda what, share: None,
    room: int = SIGNALS_ROOM,
) -> Sequence[nn.Sequential]:
    """Train the reader of an exit behind each module of ``ends`` but the last, on the frozen ``model``.

    ``given``: batches of images and labels. The readers train together, each with a classifier that is then dropped, because
    ``fit_exit`` fits the final one. ``room``: bytes of signals to keep in memory; if they do not suffice for all examples, these are
    taken in parts, and the network runs over them ``FIT_ROUNDS`` times.
    """
    device = given[0][0].device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, logits = _signals(model, ends, given[0][0][:2])
        reading = [one.to(device) for one in readers([first[c] for c in sorted(first)])]
        at = [c for c, reader in enumerate(reading) if len(reader)]
        if not at:
            return reading
        widths = [pooled_by_quarter(reading[c].eval()(first[c])).shape[1] for c in at]
        answers = nn.ModuleList([nn.Linear(width, logits.shape[1]) for width in widths]).to(device)
        parts = _parts(given, int(room // sum(coarse(first[c])[0].nbytes for c in at)))
        rounds = 1 if len(parts) == 1 else FIT_ROUNDS
        plan = [(part, _rows(part, PASSES // rounds)) for _ in range(rounds) for part in parts]
    steps, done = sum(len(rows) for _, rows in plan), 0
    learning = nn.ModuleList([answers, *(reading[c] for c in at)]).train()
    optimizer = torch.optim.AdamW(learning.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for part, rows in plan:
        kept = _Kept.of(model, ends, part, at)
        for mine in rows:
            progress("exits", done / steps)
            signals, targets = kept.take(mine)
            with torch.enable_grad():
                logits_by_exit = [
                    answer(pooled_by_quarter(reading[c](signals[c]))) for c, answer in zip(at, answers, strict=True)
                ]
                loss = torch.stack([F.cross_entropy(one, targets) for one in logits_by_exit]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        del kept  # free the memory before the next part
    return [without_norms(reader) for reader in reading]


def _parts(given: Sequence[tuple[Tensor, Tensor]], most: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Divide ``given`` into parts of at most ``most`` examples, but at least one batch."""
    parts: list[list[tuple[Tensor, Tensor]]] = [[]]
    for batch in given:
        if parts[-1] and sum(len(labels) for _, labels in [*parts[-1], batch]) > most:
            parts.append([])
        parts[-1].append(batch)
    return parts


def _rows(part: Sequence[tuple[Tensor, Tensor]], passes: int) -> tuple[Tensor, ...]:
    """Rows of each batch in ``passes`` over a part. Batches of one example are dropped: batch norm needs two."""
    count, device = sum(len(labels) for _, labels in part), part[0][1].device
    steps = torch.cat([torch.randperm(count) for _ in range(passes)]).to(device).split(BATCH)
    return tuple(rows for rows in steps if len(rows) > 1)


@torch.no_grad()
def _signals(model: nn.Module, ends: Sequence[nn.Module], images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """(output of each module of ``ends``, by its index; logits of the network)."""
    signals: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for c, end in enumerate(ends):

            def keep(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...], c: int = c) -> None:
                signals[c] = (out[0] if isinstance(out, tuple) else out).float()

            stack.callback(end.register_forward_hook(keep).remove)
        logits = logits_of(model, images).float()
    return signals, logits


@dataclass(frozen=True, eq=False)
class _Kept:
    """Signals and targets of some examples, so that the network need not run in every pass over them."""

    signals: dict[int, Tensor]
    targets: Tensor  # (N, K)

    @classmethod
    def of(cls, model: nn.Module, ends: Sequence[nn.Module], part: Sequence[tuple[Tensor, Tensor]], at: Sequence[int]) -> _Kept:
        signals: dict[int, Tensor] = {}
        targets, start, count = [], 0, sum(len(labels) for _, labels in part)
        for images, labels in part:
            seen, logits = _signals(model, ends, images)
            targets.append(exit_targets(logits, labels))
            for c in at:
                signal = coarse(seen[c])
                if not start:
                    signals[c] = signal.new_empty(count, *signal.shape[1:])
                signals[c][start : start + len(labels)] = signal
            start += len(labels)
        return cls(signals, torch.cat(targets))

    def take(self, rows: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        return {c: signal[rows] for c, signal in self.signals.items()}, self.targets[rows]


def temperature_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Temperature by which to divide ``logits`` (N, K) so that they are calibrated on ``labels`` (N,) (Guo et al. 2017)."""
    choices = torch.logspace(-0.7, 1.0, 60)
    return choices[torch.stack([F.cross_entropy(logits / t, labels) for t in choices]).argmin()]


def fit_exit(features: Tensor, targets: Tensor, held: Tensor, labels: Tensor, reader: nn.Sequential) -> ExitHead:
    """Fit a classifier to ``features`` (N, F) and ``targets`` (N, K), and its temperature to ``held`` out features with ``labels``."""
    head = ExitHead(features.shape[1], targets.shape[1], reader)
    head.standardise(features)
    z = head.standardised(features)
    weight = torch.zeros_like(head.weight).requires_grad_()
    bias = torch.zeros_like(head.bias).requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, targets) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        head.temperature.copy_(temperature_of(head.linear(held)[0], labels))
    return head
