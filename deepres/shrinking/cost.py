"""Costs of blocks: measured time and counted multiply-adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepres.adapters import Block, find_blocks, kept_modes, logits_of
from deepres.evaluation import block_times
from deepres.evaluation.timing import from_first_process


def measured_blocks(model: nn.Module, inputs: Tensor) -> list[Block]:
    """All blocks of ``model`` that contain sites, in order, with their time and multiply-adds on ``inputs``.

    The model is left unchanged. Under several processes, all of them must call this; the times of the first process are used in all.
    """
    plain = find_blocks(model)
    if not plain:
        return []
    with kept_modes(model):
        model.eval()
        times = from_first_process(block_times(model, plain, inputs))  # all processes must choose the same blocks
        macs = _macs(model, plain, inputs[:1])
    return [dataclasses.replace(block, time=time, macs=count) for block, time, count in zip(plain, times, macs, strict=True)]


def staying_cost(model: nn.Module, blocks: Sequence[Block], costs: Sequence[float]) -> float:
    """Least total cost of the removable blocks that have to stay: one in each list of ``model`` that holds nothing else."""
    lists: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        lists.setdefault(block.container, []).append(i)
    return sum(
        min(costs[i] for i in members)
        for path, members in lists.items()
        if all(blocks[i].removable for i in members) and len(members) == len(model.get_submodule(path)._modules)
    )


@torch.no_grad()
def _macs(model: nn.Module, blocks: Sequence[Block], inputs: Tensor) -> list[int]:
    """Multiply-adds of each block, by PyTorch's counter, which counts by module."""
    with FlopCounterMode(display=False) as flops:
        logits_of(model, inputs)
    counts, root = flops.get_flop_counts(), type(model).__name__
    return [sum(counts.get(f"{root}.{block.path}", {}).values()) // 2 for block in blocks]  # some multiply no matrices
