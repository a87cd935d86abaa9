"""Fitting of gates and exits to a frozen network, in a few passes over training examples and without gradients through the network.

Gates learn measurements: for each block and example, the Kullback-Leibler divergence between the network's answers with the block and
without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.data import Data
from deepres.evaluation import block_times, branch_times, outside_times
from deepres.evaluation.timing import TimingPoint, call_times, now, timeline
from deepres.exits import ExitHead, StandardisedLinear, exit_targets
from deepres.exits.fitting import fit_exit, fit_readers, temperature_of
from deepres.ghosting.gates import Gate
from deepres.ghosting.model import Ghost
from deepres.ghosting.recording import at_segments, batches, record_signals

GATE_RIDGE = 0.01  # penalty of the ridge regression, times the number of examples
LEAST_DIVERGENCE = 1e-6  # divergence in nats below which an answer counts as unchanged
EXIT_EXAMPLES = 10  # times the gates' examples: exits need a few passes, gates one pass for each block
IMAGES_ROOM = 2 << 30  # bytes of images that are kept for fitting


@torch.no_grad()
def block_divergences(
    ghost: Ghost, given: list[tuple[Tensor, Tensor]], whole: Tensor, progress: Callable[[str, float], None]
) -> Tensor:
    """Log10 of the divergence of the answer without each block, (N, blocks); infinite for blocks that cannot be skipped."""
    out = torch.full((len(whole), len(ghost.blocks)), math.inf)
    reference = whole.log_softmax(1)
    skippable = [i for segment in ghost.segments for i in segment.skippable]
    for done, i in enumerate(skippable):
        progress("importance of each block", done / len(skippable))
        with ExitStack() as stack:
            for site in ghost.blocks[i].sites:
                stack.enter_context(site.bypass())
            moved = torch.cat([logits_of(ghost.net, x).float().cpu() for x, _ in given]).log_softmax(1)
        divergence = F.kl_div(moved, reference, reduction="none", log_target=True).sum(1)
        out[:, i] = divergence.clamp(min=LEAST_DIVERGENCE).log10()
    return out


def fit_ghost(
    ghost: Ghost,
    data: Data,
    *,
    gates: bool = True,
    exits: bool = True,
    examples: int = 2000,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> None:
    """Fit the gates and exits of ``ghost``.

    Gates are fitted on ``examples`` examples of the training split, exits on ``EXIT_EXAMPLES`` times as many, and temperatures on the
    validation split.
    """
    device = next(ghost.net.parameters()).device
    progress("answers", 0.0)
    most = max(examples, min(EXIT_EXAMPLES * examples, IMAGES_ROOM // (4 * math.prod(data.shape)))) if exits else examples
    many = list(batches(data, "train", most, device))
    readers = fit_readers(ghost.net, ghost.ends, many, progress) if exits else ()
    seen = record_signals(ghost, many, readers)
    ghost.gates = nn.ModuleList([nn.Identity() for _ in ghost.segments])
    ghost.exits = nn.ModuleList([nn.Identity() for _ in ghost.segments])
    if gates:
        few = many[: -(-examples // len(many[0][1]))]
        count = sum(len(y) for _, y in few)
        shares = _branch_shares(ghost, few[0][0][:64])
        divergence = block_divergences(ghost, few, seen.logits[:count], progress)
        mean = sum(shares) / len(shares)
        for c, segment in enumerate(ghost.segments):
            if segment.skippable:
                cost = torch.tensor([math.log10(max(shares[i], 1e-9) / mean) for i in segment.skippable])
                importance = divergence[:, list(segment.skippable)] - cost
                ghost.gates[c] = _gate(seen.entries[c][:count], importance).to(device)
    if exits:
        held = record_signals(ghost, list(batches(data, "val", examples, device)), readers)
        targets = exit_targets(seen.logits, seen.labels)
        for c in range(len(ghost.segments) - 1):
            progress("exits", c / len(ghost.segments))
            ghost.exits[c] = fit_exit(seen.outputs[c], targets, held.outputs[c], held.labels, readers[c]).to(device)
        ghost.temperature = float(temperature_of(held.logits, held.labels))
    ghost.requires_grad_(False)
    ghost.time_to_next = _time_to_next(ghost, many[0][0])
    progress("done", 1.0)


@torch.no_grad()
def _time_to_next(ghost: Ghost, inputs: Tensor, turns: int = 5) -> list[tuple[float, float]]:
    """Seconds from the end of each segment to the next answer: (of a call, of each row), slowest of the turns.

    The next answer is that of the next segment's exit, or the network's, which has no exit behind its last segment.
    """
    rows = (1, min(32, len(inputs)))
    ends: list[TimingPoint] = [(end, "after") for end in ghost.ends]
    slowest = []
    for n in rows:
        passes = timeline(ends, partial(ghost.net, inputs[:n]), inputs.device, repeats=turns)
        spans = [[b - a for a, b in pairwise(row)] for row in passes]
        slowest.append([max(column) for column in zip(*spans, strict=True)])
    found = []
    for one, many in zip(*slowest, strict=True):
        each = max(0.0, (many - one) / max(1, rows[1] - rows[0]))
        found.append((max(0.0, one - each), each))
    if len(found) > 1:
        found[-2] = (found[-2][0] + found[-1][0], found[-2][1] + found[-1][1])
    return found


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs as measured shares of a forward pass of ``batch`` inputs."""

    blocks: Tensor  # (blocks,)
    outside: Tensor  # (1 + blocks,), the layers before the first block, and those behind each block up to the next
    branches: Tensor  # (blocks,), the part of a block that is saved when it is skipped
    gates: Tensor  # (segments,)
    exits: Tensor  # (segments,)
    batch: int = 1
    fixed: float = 0.0  # part of each cost that does not depend on the number of rows, as a share

    def paid(self, rows: Tensor) -> Tensor:
        """Expected share of a cost that is paid where each row needs it with probability ``rows``; the fixed part is paid once."""
        return (1 - self.fixed) * rows + self.fixed * (1 - (1 - rows) ** self.batch)


@torch.no_grad()
def costs(ghost: Ghost, inputs: Tensor, turns: int = 7) -> Costs:
    """Measure the cost of each block, gate and exit for ``inputs`` in one batch, inside a forward pass, with cold caches."""
    device = inputs.device
    whole = min(call_times(partial(ghost.net, inputs), device, repeats=turns))
    least = {kind: [math.inf] * len(ghost.segments) for kind in ("gates", "exits")}

    def at(kind: Literal["gates", "exits"], c: int, signal: Tensor) -> None:
        head = (ghost.gates if kind == "gates" else ghost.exits)[c]
        began = now(device)
        if isinstance(head, StandardisedLinear):
            _run_head(head, signal)
        least[kind][c] = min(least[kind][c], now(device) - began)

    with at_segments(ghost, entry=partial(at, "gates"), output=partial(at, "exits")):
        for _ in range(turns):
            ghost.net(inputs)
    gates, exits = ([seconds / whole for seconds in least[kind]] for kind in ("gates", "exits"))
    blocks, branches = block_times(ghost.net, ghost.blocks, inputs), _branch_shares(ghost, inputs)
    outside = outside_times(ghost.net, ghost.blocks, inputs)
    scale = max(0.0, 1 - sum(blocks)) / max(sum(outside), 1e-12)  # each span is the fastest of several passes
    n = len(inputs)
    half = min(call_times(partial(ghost.net, inputs[: n // 2]), device, repeats=turns)) if n > 1 else 0.0
    fixed = min(max((2 * half / whole - 1) if n > 1 else 0.0, 0.0), 1.0)
    return Costs(
        blocks=torch.tensor(blocks),
        outside=scale * torch.tensor(outside),
        branches=torch.tensor(branches),
        gates=torch.tensor(gates),
        exits=torch.tensor(exits),
        batch=n,
        fixed=fixed,
    )


def _branch_shares(ghost: Ghost, inputs: Tensor) -> list[float]:
    """Share of a forward pass that each block's branches take."""
    shares = iter(branch_times(ghost.net, [site for block in ghost.blocks for site in block.sites], inputs))
    return [sum(next(shares) for _ in block.sites) for block in ghost.blocks]


def _run_head(head: StandardisedLinear, signal: Tensor) -> list[int]:
    """Do the work of a pass at a gate or an exit: compute it, compare, wait for the counts, and select half of the rows."""
    if isinstance(head, ExitHead) and len(signal) == 1 and signal.device.type == "cpu":
        head.single(signal)
        return []
    out = head(signal)
    if not isinstance(out, tuple):
        return list((out >= 0).sum(0).tolist())
    if len(signal) > 1:
        signal.index_select(0, torch.arange(0, len(signal), 2, device=signal.device))
    return list((out[1] >= 0.5).sum(0, keepdim=True).tolist())


def _gate(entry: Tensor, importance: Tensor) -> Gate:
    """Ridge regression of ``importance`` (N, blocks) on the pooled signal ``entry`` (N, C)."""
    gate = Gate(entry.shape[1], importance.shape[1])
    gate.standardise(entry)
    z = gate.standardised(entry).double()
    normal = z.T @ z + GATE_RIDGE * len(z) * torch.eye(z.shape[1], dtype=torch.float64)
    gate.weight.copy_(torch.linalg.solve(normal, z.T @ (importance - importance.mean(0)).double()).T)
    gate.bias.copy_(importance.mean(0))
    return gate
