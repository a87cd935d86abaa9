"""What blocks cost: their time, measured, and their multiply-adds, counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepres.adapters import Block, Site, find_blocks, logits_of
from deepres.evaluation import block_times
from deepres.evaluation.timing import from_first_process


def measured_units(model: nn.Module, inputs: Tensor) -> list[Block]:
    """All blocks of ``model`` that hold sites, in order, measured on ``inputs``. The model is left as it was.

    Under several processes, all of which have to call this, the first one's times hold for all.
    """
    plain = find_blocks(model)
    if not plain:
        return []
    was = model.training
    model.eval()
    try:
        found = [site for unit in plain for site in unit.sites]
        times = from_first_process(block_times(model, plain, inputs))  # all choose by the same figures
        macs = _macs(model, found, inputs[:1])
    finally:
        model.train(was)
    return [dataclasses.replace(unit, time=share, macs=macs[unit.path]) for unit, share in zip(plain, times, strict=True)]


@torch.no_grad()
def _macs(model: nn.Module, found: Sequence[Site], inputs: Tensor) -> dict[str, int]:
    """Of each block: what a pass costs in all, less what it costs without it."""
    counted: dict[str, int] = {}
    handles = []
    open_at: dict[str, int] = {}
    with FlopCounterMode(display=False) as flops:
        for path, block in {site.path: site.block for site in found}.items():

            def enter(*_: object, path: str = path) -> None:
                open_at[path] = flops.get_total_flops()

            def leave(*_: object, path: str = path) -> None:
                counted[path] = (flops.get_total_flops() - open_at[path]) // 2

            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        try:
            logits_of(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return counted
