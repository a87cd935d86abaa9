"""Shares of a forward pass's time: of each branch, of each whole block, and of the layers between the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from deepres.adapters import kept_modes, logits_of, uncompiled
from deepres.adapters.blocks import Block
from deepres.adapters.site import Site
from deepres.evaluation.timing import TimingPoint, timeline


def branch_times(model: nn.Module, sites: Sequence[Site], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time that each site's branch takes."""
    return _shares(model, [((site.entry, "before"), (site.end, "after")) for site in sites], inputs, repeats)


def block_times(model: nn.Module, units: Sequence[Block], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time that each block takes: its branches, sums and activations."""
    blocks = [unit.sites[0].block for unit in units]
    return _shares(model, [((block, "before"), (block, "after")) for block in blocks], inputs, repeats)


def outside_times(model: nn.Module, units: Sequence[Block], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time outside the blocks: before the first one, and behind each up to the next or the end."""
    blocks = [unit.sites[0].block for unit in units]
    edges: list[TimingPoint] = [(block, side) for block in blocks for side in ("before", "after")]
    return _shares(model, list(pairwise([(model, "before"), *edges, (model, "after")]))[::2], inputs, repeats)


@torch.no_grad()
def _shares(model: nn.Module, spans: Sequence[tuple[TimingPoint, TimingPoint]], inputs: Tensor, repeats: int) -> list[float]:
    """Share of the time from one point to another, for each pair.

    Of each span and of the whole pass the fastest of ``repeats`` counts, since other work on the machine only slows a pass down.
    """
    points = [point for span in spans for point in span]
    with kept_modes(model), uncompiled(model):
        model.eval()  # norms in training mode would take the inputs into their statistics
        rows = timeline(points, partial(logits_of, model, inputs), inputs.device, repeats=repeats)
    whole = min(row[-1] for row in rows)
    return [min(row[2 * i + 1] - row[2 * i] for row in rows) / whole for i in range(len(spans))]
