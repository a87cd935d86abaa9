"""Fit gates and exits to a frozen network: some passes over some training examples, no gradient through the network.

What a gate learns is measured, not guessed: for each block and example, how far the network's answer moves when that block alone is
skipped, as the Kullback-Leibler divergence to the undisturbed answer.
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
from deepres.evaluation import block_times, branch_times
from deepres.evaluation.timing import Point, call_times, now, timeline
from deepres.exits import ExitHead, StandardisedLinear, learnt
from deepres.exits.fitting import fit_exit, fit_readers, temperature_of
from deepres.ghosting.gates import Gate
from deepres.ghosting.model import Ghost
from deepres.ghosting.recording import at_segments, batches, look

RIDGE = 0.01  # of the examples
LEAST = 1e-6  # divergence below which an answer has not moved, nats
EASY = 10  # exits are fitted on this many times the gates' examples: they need a few passes, gates one for each block
IMAGES_ROOM = 2 << 30  # bytes of the images that all is fitted on


@torch.no_grad()
def harms(ghost: Ghost, given: list[tuple[Tensor, Tensor]], whole: Tensor, progress: Callable[[str, float], None]) -> Tensor:
    """(N, blocks): log10 of the divergence of the answer without each block; infinite for blocks that cannot be skipped."""
    out = torch.full((len(whole), len(ghost.units)), math.inf)
    reference = whole.log_softmax(1)
    able = [i for segment in ghost.segments for i in segment.skippable]
    for done, i in enumerate(able):
        progress("worth of each block", done / len(able))
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
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> None:
    """Give ``ghost`` its gates and exits.

    Gates are fitted on ``examples`` of the training split, exits on ``EASY`` times as many; temperatures on the validation split.
    """
    device = next(ghost.net.parameters()).device
    progress("answers", 0.0)
    most = max(examples, min(EASY * examples, IMAGES_ROOM // (4 * math.prod(data.shape)))) if exits else examples
    many = list(batches(data, "train", most, device))
    reading = fit_readers(ghost.net, ghost.ends, many, progress) if exits else ()
    seen = look(ghost, many, reading)
    ghost.gates = nn.ModuleList([nn.Identity() for _ in ghost.segments])
    ghost.exits = nn.ModuleList([nn.Identity() for _ in ghost.segments])
    if gates:
        few = many[: -(-examples // len(many[0][1]))]
        count = sum(len(y) for _, y in few)
        shares = _branches(ghost, few[0][0][:64])
        worth = harms(ghost, few, seen.logits[:count], progress)
        middle = sum(shares) / len(shares)
        for c, segment in enumerate(ghost.segments):
            if segment.skippable:
                dearer = torch.tensor([math.log10(max(shares[i], 1e-9) / middle) for i in segment.skippable])
                mine = worth[:, list(segment.skippable)] - dearer
                ghost.gates[c] = _gate(seen.entries[c][:count], mine).to(device)
    if exits:
        held = look(ghost, list(batches(data, "val", examples, device)), reading)
        wanted = learnt(seen.logits, seen.labels)
        for c in range(len(ghost.segments) - 1):
            progress("exits", c / len(ghost.segments))
            ghost.exits[c] = fit_exit(seen.outputs[c], wanted, held.outputs[c], held.labels, reading[c]).to(device)
        ghost.temperature = float(temperature_of(held.logits, held.labels))
    ghost.requires_grad_(False)
    ghost.ahead = _ahead(ghost, many[0][0])
    progress("done", 1.0)


@torch.no_grad()
def _ahead(ghost: Ghost, inputs: Tensor, turns: int = 5) -> list[tuple[float, float]]:
    """Of each segment: seconds from its end to the next one's, or the network's, as (of a call, of a row). The slowest of a few turns."""
    rows = (1, min(32, len(inputs)))
    ends: list[Point] = [(end, "after") for end in ghost.ends]
    slowest = []
    for n in rows:
        passes = timeline(ends, partial(ghost.net, inputs[:n]), inputs.device, repeats=turns)
        spans = [[b - a for a, b in pairwise(row)] for row in passes]
        slowest.append([max(column) for column in zip(*spans, strict=True)])
    found = []
    for one, many in zip(*slowest, strict=True):
        each = max(0.0, (many - one) / max(1, rows[1] - rows[0]))
        found.append((max(0.0, one - each), each))
    return found


@dataclass(frozen=True, eq=False)
class Costs:
    """Measured shares of a forward pass of ``batch`` inputs."""

    blocks: Tensor  # (blocks,), as a whole
    branches: Tensor  # (blocks,), what is saved where they are skipped
    gates: Tensor  # (segments,)
    exits: Tensor
    batch: int = 1
    fixed: float = 0.0  # share of all this that one row costs as much as all of them

    @property
    def rest(self) -> float:
        """What always runs."""
        return max(0.0, 1 - float(self.blocks.sum()))

    def paid(self, rows: Tensor) -> Tensor:
        """What is paid of a thing that each row needs with probability ``rows``: its own part, and the fixed one if any row does."""
        return (1 - self.fixed) * rows + self.fixed * (1 - (1 - rows) ** self.batch)


@torch.no_grad()
def costs(ghost: Ghost, inputs: Tensor, turns: int = 7) -> Costs:
    """Measured costs of each block, gate and exit, on these inputs in one batch; timed inside a forward pass, with cold caches."""
    device = inputs.device
    whole = min(call_times(partial(ghost.net, inputs), device, repeats=turns))
    least = {kind: [math.inf] * len(ghost.segments) for kind in ("gates", "exits")}

    def at(kind: Literal["gates", "exits"], c: int, signal: Tensor) -> None:
        head = (ghost.gates if kind == "gates" else ghost.exits)[c]
        began = now(device)
        if isinstance(head, StandardisedLinear):
            _decide(head, signal)
        least[kind][c] = min(least[kind][c], now(device) - began)

    with at_segments(ghost, enter=partial(at, "gates"), leave=partial(at, "exits")):
        for _ in range(turns):
            ghost.net(inputs)
    gates, exits = ([seconds / whole for seconds in least[kind]] for kind in ("gates", "exits"))
    blocks, branches = block_times(ghost.net, ghost.units, inputs), _branches(ghost, inputs)
    n = len(inputs)
    half = min(call_times(partial(ghost.net, inputs[: n // 2]), device, repeats=turns)) if n > 1 else 0.0
    fixed = min(max((2 * half / whole - 1) if n > 1 else 0.0, 0.0), 1.0)
    shares = [torch.tensor(one) for one in (blocks, branches, gates, exits)]
    return Costs(shares[0], shares[1], shares[2], shares[3], batch=n, fixed=fixed)


def _branches(ghost: Ghost, inputs: Tensor) -> list[float]:
    """Share of a forward pass that each block's branches take."""
    shares = iter(branch_times(ghost.net, [site for unit in ghost.units for site in unit.sites], inputs))
    return [sum(next(shares) for _ in unit.sites) for unit in ghost.units]


def _decide(head: StandardisedLinear, signal: Tensor) -> list[int]:
    """What a pass does at a gate or an exit: compute it, compare, wait for the counts, and go on with half of the rows."""
    if isinstance(head, ExitHead) and len(signal) == 1 and signal.device.type == "cpu":
        head.single(signal)
        return []
    out = head(signal)
    if not isinstance(out, tuple):
        return list((out >= 0).sum(0).tolist())
    if len(signal) > 1:
        signal.index_select(0, torch.arange(0, len(signal), 2, device=signal.device))
    return list((out[1] >= 0.5).sum(0, keepdim=True).tolist())


def _gate(entry: Tensor, worth: Tensor) -> Gate:
    """Ridge regression of the worth on the pooled signal."""
    gate = Gate(entry.shape[1], worth.shape[1])
    gate.standardise(entry)
    z = gate.standardised(entry).double()
    normal = z.T @ z + RIDGE * len(z) * torch.eye(z.shape[1], dtype=torch.float64)
    gate.weight.copy_(torch.linalg.solve(normal, z.T @ (worth - worth.mean(0)).double()).T)
    gate.bias.copy_(worth.mean(0))
    return gate
