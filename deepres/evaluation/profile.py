"""What a forward pass spends where: on branches, and on whole blocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.adapters.blocks import Block
from deepres.adapters.site import Site


def branch_times(model: nn.Module, sites: Sequence[Site], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """The share of a forward pass's time that each site's branch takes, measured."""
    return _shares(model, [(site.entry, site.end) for site in sites], inputs, repeats)


def block_times(model: nn.Module, units: Sequence[Block], inputs: Tensor, *, repeats: int = 7) -> list[float]:
    """The share of a forward pass's time that each block takes with all that is in it: branches, sums and activations."""
    return _shares(model, [(unit.sites[0].block, unit.sites[0].block) for unit in units], inputs, repeats)


@torch.no_grad()
def _shares(model: nn.Module, spans: Sequence[tuple[nn.Module, nn.Module]], inputs: Tensor, repeats: int) -> list[float]:
    """Of the time from the input of one module to the output of another, the fastest of ``repeats`` passes each.

    Whatever else the machine does can only slow a pass down. On a GPU each reading of the clock waits for the device, so the shares
    are right and the pass is slower than it would be.
    """
    wait = torch.cuda.synchronize if inputs.is_cuda else (lambda: None)
    starts: dict[int, float] = {}
    spent: list[list[float]] = [[] for _ in spans]
    totals = []

    def now() -> float:
        wait()
        return time.perf_counter()

    with ExitStack() as stack:
        for i, (first, last) in enumerate(spans):

            def enter(*_: object, i: int = i) -> None:
                starts[i] = now()

            def leave(*_: object, i: int = i) -> None:
                spent[i].append(now() - starts[i])

            stack.callback(first.register_forward_pre_hook(enter).remove)
            stack.callback(last.register_forward_hook(leave).remove)
        for _ in range(repeats + 1):
            began = now()
            logits_of(model, inputs)
            totals.append(now() - began)
    return [min(times[1:]) / min(totals[1:]) for times in spent]  # the first pass warms up
