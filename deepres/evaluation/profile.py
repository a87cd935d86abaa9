"""Shares of a forward pass's time: of each branch, and of each whole block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of, uncompiled
from deepres.adapters.blocks import Block
from deepres.adapters.site import Site
from deepres.evaluation.timing import TimingPoint, timeline


def branch_times(model: nn.Module, sites: Sequence[Site], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time that each site's branch takes."""
    return _shares(model, [(site.entry, site.end) for site in sites], inputs, repeats)


def block_times(model: nn.Module, units: Sequence[Block], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time that each block takes: its branches, sums and activations."""
    return _shares(model, [(unit.sites[0].block, unit.sites[0].block) for unit in units], inputs, repeats)


@torch.no_grad()
def outside_times(model: nn.Module, units: Sequence[Block], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """Measured share of a forward pass's time outside the blocks: before the first one, and behind each up to the next or the end."""
    points: list[TimingPoint] = [(unit.sites[0].block, side) for unit in units for side in ("before", "after")]
    with uncompiled(model):
        rows = timeline(points, partial(logits_of, model, inputs), inputs.device, repeats=repeats)
    whole = min(row[-1] for row in rows)
    spans = [[at - behind for behind, at in zip((0.0, *row[1:-1:2]), row[::2], strict=True)] for row in rows]
    return [max(0.0, min(span)) / whole for span in zip(*spans, strict=True)]


@torch.no_grad()
def _shares(model: nn.Module, spans: Sequence[tuple[nn.Module, nn.Module]], inputs: Tensor, repeats: int) -> list[float]:
    """Share of the time from the input of one module to the output of another, for each pair.

    Of each span and of the whole pass the fastest of ``repeats`` counts, since other work on the machine only slows a pass down.
    """
    points: list[TimingPoint] = [point for first, last in spans for point in ((first, "before"), (last, "after"))]
    with uncompiled(model):
        rows = timeline(points, partial(logits_of, model, inputs), inputs.device, repeats=repeats)
    whole = min(row[-1] for row in rows)
    return [min(row[2 * i + 1] - row[2 * i] for row in rows) / whole for i in range(len(spans))]
