"""Networks and runs at the limits of shrinking: stages that keep a block, blocks without multiply-adds, runs of a few steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError
from deepres.data import open_data
from deepres.shrinking import Target, time_ratio
from deepres.shrinking.cost import measured_blocks, staying_cost
from deepres.shrinking.importance import residual_ratios

FAST = {"speed": "exact", "memory": "all", "show": False}


def test_what_a_stage_has_to_keep_cannot_be_removed() -> None:
    model = deepres.create("resnet20-cifar", in_channels=1)
    blocks = measured_blocks(model, torch.randn(2, 1, 8, 8))
    staying = staying_cost(model, blocks, [1 / 9] * 9)
    assert staying == pytest.approx(1 / 9)  # the first stage has removable blocks alone
    assert Target.parse("blocks=3").to_remove(blocks, staying) == pytest.approx(6 / 9)
    with pytest.raises(DeepresError, match="hold only 67 % without those that a stage has to keep; give a larger value"):
        Target.parse("blocks=2").to_remove(blocks, staying)
    with pytest.raises(DeepresError, match="78 % of the blocks would have to be removed"):
        deepres.shrink(model, "digits", "blocks=2", epochs=1, trained=False, **FAST)


def test_a_block_without_multiply_adds_has_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), deepres.nn.Residual(nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(144, 10))
    assert [block.macs for block in measured_blocks(net, torch.randn(2, 3, 8, 8))] == [0]


def test_measuring_leaves_the_modes_of_all_modules() -> None:
    model = deepres.create("resnet8-cifar").train()
    model.stages[0].eval()  # as one freezes the norms of a trained network
    x = torch.randn(2, 3, 8, 8)
    before = [module.training for module in model.modules()]
    measured_blocks(model, x)
    residual_ratios(model, x)
    time_ratio(model, model, x, turns=1)
    assert [module.training for module in model.modules()] == before


def test_a_run_of_a_few_steps_removes_what_was_asked() -> None:
    """Three steps, of which none lies inside the phase in which blocks are constrained."""
    digits = open_data("digits")
    few = dataclasses.replace(digits, train=digits.train.take(torch.arange(64)))
    model = deepres.create("resnet14-cifar", in_channels=1, width=0.5)
    found = deepres.shrink(model, few, "blocks=4", epochs=3, recipe="digits", **FAST)
    assert found.blocks == (6, 4) and len(found.removed) == 2 and found.difference < 1e-5
