"""Costs of blocks: measured time and counted multiply-adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepres.adapters import Block, Site, find_blocks, logits_of
from deepres.evaluation import block_times
from deepres.evaluation.timing import from_first_process


def measured_blocks(model: nn.Module, inputs: Tensor) -> list[Block]:
    """All blocks of ``model`` that contain sites, in order, with their time and multiply-adds on ``inputs``.

    The model is left unchanged. Under several processes, all of them must call this; the times of the first process are used in all.
    """
    plain = find_blocks(model)
    if not plain:
        return []
    was = model.training
    model.eval()
    try:
        sites = [site for block in plain for site in block.sites]
        times = from_first_process(block_times(model, plain, inputs))  # all processes must choose the same blocks
        macs = _macs(model, sites, inputs[:1])
    finally:
        model.train(was)
    return [dataclasses.replace(block, time=share, macs=macs[block.path]) for block, share in zip(plain, times, strict=True)]


@torch.no_grad()
def _macs(model: nn.Module, sites: Sequence[Site], inputs: Tensor) -> dict[str, int]:
    """Multiply-adds of each block, by path, as the difference of the total after and before it."""
    counted: dict[str, int] = {}
    handles = []
    before: dict[str, int] = {}
    with FlopCounterMode(display=False) as flops:
        for path, block in {site.path: site.block for site in sites}.items():

            def enter(*_: object, path: str = path) -> None:
                before[path] = flops.get_total_flops()

            def leave(*_: object, path: str = path) -> None:
                counted[path] = (flops.get_total_flops() - before[path]) // 2

            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        try:
            logits_of(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return counted
