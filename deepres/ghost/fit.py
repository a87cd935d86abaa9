"""Fit gates and exits to a frozen network: a few passes over some training examples, no gradient through the network.

What a gate learns is measured, not guessed: for each block and example, how far the network's answer moves when that block alone is
passed through, as the Kullback-Leibler divergence to the undisturbed answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.data import Data, Loader, seeded
from deepres.errors import DeepresError
from deepres.ghost.heads import Exit, Gate, Head
from deepres.ghost.route import Ghost
from deepres.nn import logits_of
from deepres.sites import block_times, branch_times, pooled, pooled_by_quarter

RIDGE = 0.01  # of the examples
LEAST = 1e-6  # divergence below which an answer has not moved, nats
EASY = 5  # exits are fitted on this many times the gates' examples: they need one pass, gates one for each block


@dataclass(frozen=True, eq=False)
class Seen:
    """Pooled signals in front of and behind each chunk, and answers, over some examples."""

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
def _at_chunks(
    ghost: Ghost,
    *,
    enter: Callable[[int, Tensor], None] = lambda c, signal: None,
    leave: Callable[[int, Tensor], None] = lambda c, signal: None,
) -> Iterator[None]:
    """While open: ``enter`` gets each chunk and the signal in front of it, ``leave`` the one behind."""
    with ExitStack() as stack:
        for c, chunk in enumerate(ghost.chunks):
            first, last = (ghost.units[i].sites[0].block for i in (chunk.units[0], chunk.units[-1]))
            before = first.register_forward_pre_hook(lambda _, args, c=c: enter(c, args[0]))
            behind = last.register_forward_hook(lambda _, __, out, c=c: leave(c, out[0] if isinstance(out, tuple) else out))
            stack.callback(before.remove)
            stack.callback(behind.remove)
        yield


@torch.no_grad()
def look(ghost: Ghost, given: list[tuple[Tensor, Tensor]]) -> Seen:
    """One pass of the whole network."""
    entries: list[list[Tensor]] = [[] for _ in ghost.chunks]
    outputs: list[list[Tensor]] = [[] for _ in ghost.chunks]
    with _at_chunks(
        ghost,
        enter=lambda c, signal: entries[c].append(pooled(signal).float().cpu()),
        leave=lambda c, signal: outputs[c].append(pooled_by_quarter(signal).float().cpu()),
    ):
        logits = [logits_of(ghost.net, x).float().cpu() for x, _ in given]
    if logits[0].ndim != 2:
        raise DeepresError("a ghost classifies whole inputs; a language model gives an answer for every token")
    return Seen(
        [torch.cat(e) for e in entries],
        [torch.cat(o) for o in outputs],
        torch.cat(logits),
        torch.cat([y.cpu() for _, y in given]),
    )


@torch.no_grad()
def harms(ghost: Ghost, given: list[tuple[Tensor, Tensor]], whole: Tensor, watch: Callable[[str, float], None]) -> Tensor:
    """(N, blocks): log10 of the divergence of the answer without each block; infinite for blocks that cannot be ghosts."""
    out = torch.full((len(whole), len(ghost.units)), math.inf)
    reference = whole.log_softmax(1)
    able = [i for chunk in ghost.chunks for i in chunk.skippable]
    for done, i in enumerate(able):
        watch("what each block matters", done / len(able))
        with ExitStack() as stack:
            for site in ghost.units[i].sites:
                stack.enter_context(site.bypass())
            moved = torch.cat([logits_of(ghost.net, x).float().cpu() for x, _ in given]).log_softmax(1)
        divergence = F.kl_div(moved, reference, reduction="none", log_target=True).sum(1)
        out[:, i] = divergence.clamp(min=LEAST).log10()
    return out


def fit(
    ghost: Ghost,
    data: Data,
    *,
    gates: bool = True,
    exits: bool = True,
    examples: int = 2000,
    watch: Callable[[str, float], None] = lambda what, share: None,
) -> None:
    """Give ``ghost`` its gates and exits.

    Gates are fitted on ``examples`` of the training split, exits on ``EASY`` times as many; temperatures on the validation split.
    """
    device = next(ghost.net.parameters()).device
    watch("answers", 0.0)
    many = list(batches(data, "train", EASY * examples if exits else examples, device))
    seen = look(ghost, many)
    ghost.gates = nn.ModuleList([nn.Identity() for _ in ghost.chunks])
    ghost.exits = nn.ModuleList([nn.Identity() for _ in ghost.chunks])
    if gates:
        few = many[: -(-examples // len(many[0][1]))]
        count = sum(len(y) for _, y in few)
        shares = _branches(ghost, few[0][0][:64])
        worth = harms(ghost, few, seen.logits[:count], watch)
        middle = sum(shares) / len(shares)
        for c, chunk in enumerate(ghost.chunks):
            if chunk.skippable:
                dearer = torch.tensor([math.log10(max(shares[i], 1e-9) / middle) for i in chunk.skippable])
                mine = worth[:, list(chunk.skippable)] - dearer
                ghost.gates[c] = _gate(seen.entries[c][:count], mine).to(device)
    if exits:
        held = look(ghost, list(batches(data, "val", examples, device)))
        for c in range(len(ghost.chunks) - 1):
            watch("exits", c / len(ghost.chunks))
            ghost.exits[c] = _exit(seen.outputs[c], seen.logits, held.outputs[c], held.labels).to(device)
    ghost.requires_grad_(False)
    ghost.ahead = _ahead(ghost, many[0][0])
    watch("done", 1.0)


@torch.no_grad()
def _ahead(ghost: Ghost, inputs: Tensor, turns: int = 5) -> list[tuple[float, float]]:
    """Of each chunk: seconds from its end to the next one's, or the network's, as (of a call, of a row). The slowest of a few turns."""
    rows = (1, min(32, len(inputs)))
    slowest = []
    for n in rows:
        spans: list[list[float]] = []
        for turn in range(turns + 1):
            at: list[float] = []
            with _at_chunks(ghost, leave=lambda c, signal, at=at: at.append(time.perf_counter())):  # type: ignore[misc]
                ghost.net(inputs[:n])
            at.append(time.perf_counter())
            if turn:  # the first warms up
                spans.append([b - a for a, b in pairwise(at)])
        slowest.append([max(column) for column in zip(*spans, strict=True)])
    found = []
    for one, many in zip(*slowest, strict=True):
        each = max(0.0, (many - one) / max(1, rows[1] - rows[0]))
        found.append((max(0.0, one - each), each))
    return found


@dataclass(frozen=True, eq=False)
class Costs:
    """Measured shares of a forward pass."""

    blocks: Tensor  # (blocks,), as a whole
    branches: Tensor  # (blocks,), what is saved where they are passed through
    gates: Tensor  # (chunks,)
    exits: Tensor

    @property
    def rest(self) -> float:
        """What always runs."""
        return max(0.0, 1 - float(self.blocks.sum()))


@torch.no_grad()
def costs(ghost: Ghost, inputs: Tensor, turns: int = 7) -> Costs:
    """What each block, gate and exit takes, on these inputs in one batch."""
    entries: list[Tensor] = []
    outputs: list[Tensor] = []
    with _at_chunks(ghost, enter=lambda c, x: entries.append(x), leave=lambda c, x: outputs.append(x)):
        ghost.net(inputs)
    whole = _fastest(lambda: ghost.net(inputs), turns)
    gates, exits = [], []
    for gate, head, entry, output in zip(ghost.gates, ghost.exits, entries, outputs, strict=True):
        gates.append(_fastest(partial(_decide, gate, entry), turns) / whole if isinstance(gate, Head) else 0.0)
        exits.append(_fastest(partial(_decide, head, output), turns) / whole if isinstance(head, Head) else 0.0)
    blocks, branches = block_times(ghost.net, ghost.units, inputs), _branches(ghost, inputs)
    return Costs(*map(torch.tensor, (blocks, branches, gates, exits)))


def _branches(ghost: Ghost, inputs: Tensor) -> list[float]:
    """Share of a forward pass that each block's branches take."""
    shares = iter(branch_times(ghost.net, [site for unit in ghost.units for site in unit.sites], inputs))
    return [sum(next(shares) for _ in unit.sites) for unit in ghost.units]


def _decide(head: Head, signal: Tensor) -> list[int]:
    """What a call does with a gate or an exit: ask it, compare, and wait for the counts."""
    said = head(signal)
    return list((said[1] >= 0.5).sum(0, keepdim=True).tolist() if isinstance(said, tuple) else (said >= 0).sum(0).tolist())


def _fastest(call: Callable[[], object], turns: int) -> float:
    took = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def _gate(entry: Tensor, worth: Tensor) -> Gate:
    """Ridge regression of the worth on the pooled signal."""
    gate = Gate(entry.shape[1], worth.shape[1])
    gate.standardise(entry)
    z = gate.standardised(entry).double()
    normal = z.T @ z + RIDGE * len(z) * torch.eye(z.shape[1], dtype=torch.float64)
    gate.weight.copy_(torch.linalg.solve(normal, z.T @ (worth - worth.mean(0)).double()).T)
    gate.bias.copy_(worth.mean(0))
    return gate


def _exit(features: Tensor, logits: Tensor, held: Tensor, labels: Tensor) -> Exit:
    """A classifier that learns the network's own answers; its temperature from labels it has not seen (Guo et al. 2017)."""
    head = Exit(features.shape[1], logits.shape[1])
    head.standardise(features)
    z, wanted = head.standardised(features), logits.softmax(1)
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
        own = head.linear(held)[0]
        choices = torch.logspace(-0.7, 1.0, 60)
        losses = torch.stack([F.cross_entropy(own / t, labels) for t in choices])
        head.temperature.copy_(choices[losses.argmin()])
    return head
