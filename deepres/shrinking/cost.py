"""Costs of blocks: measured time and counted multiply-adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepres.adapters import Block, find_blocks, logits_of
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
        times = from_first_process(block_times(model, plain, inputs))  # all processes must choose the same blocks
        macs = _macs(model, plain, inputs[:1])
    finally:
        model.train(was)
    return [dataclasses.replace(block, time=time, macs=count) for block, time, count in zip(plain, times, macs, strict=True)]


@torch.no_grad()
def _macs(model: nn.Module, blocks: Sequence[Block], inputs: Tensor) -> list[int]:
    """Multiply-adds of each block, by PyTorch's counter, which counts by module."""
    with FlopCounterMode(display=False) as flops:
        logits_of(model, inputs)
    counts, root = flops.get_flop_counts(), type(model).__name__
    return [sum(counts[f"{root}.{block.path}"].values()) // 2 for block in blocks]
