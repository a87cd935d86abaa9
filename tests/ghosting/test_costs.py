"""Estimated time of a ghost where layers that are no residual blocks stand between the blocks."""

from __future__ import annotations

import time

import pytest
import torch

import deepres
from deepres.adapters import find_blocks
from deepres.data import Data
from deepres.ghosting import Ghost
from deepres.ghosting.fit import Costs, _time_to_next, costs
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches
from deepres.ghosting.settings import Settings

CPU = torch.device("cpu")


def test_an_exit_saves_the_layers_behind_it_that_are_no_blocks(fitted: Ghost, data: Data) -> None:
    """Each share is counted by hand: an exit behind block b pays for what stands before it and nothing behind it."""
    passes = Passes(fitted, list(batches(data, "val", 64, CPU)))
    n, seen = len(find_blocks(fitted.net)), passes.of(Settings())
    free = torch.zeros(len(fitted.segments))
    outside = torch.arange(1.0, n + 2) / 100
    blocks = torch.full((n,), (1 - float(outside.sum())) / n)
    shares = Costs(blocks, outside, blocks, free, free)
    whole = seen.point(Settings(), passes.whole, passes.labels, shares)
    assert abs(whole.time - 1) < 1e-6
    for c in sorted(seen.exits):
        last = fitted.segments[c].blocks[-1]
        everything = Settings(exit_threshold=0.0, exits=(c,))  # all inputs are confident enough
        found = seen.point(everything, passes.whole, passes.labels, shares)
        paid = float(blocks[: last + 1].sum() + outside[: last + 1].sum())
        assert found.exited == 1 and abs(found.time - paid) < 1e-6


def test_measured_costs_add_up_to_the_whole_pass(fitted: Ghost, images: torch.Tensor) -> None:
    found = costs(fitted, images, turns=3)
    n = len(find_blocks(fitted.net))
    assert found.outside.shape == (n + 1,) and found.blocks.shape == (n,)
    assert (found.outside >= 0).all() and abs(float(found.blocks.sum() + found.outside.sum()) - 1) < 0.05


def test_the_last_exit_waits_for_the_end_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a block moves by 1 and the classifier by 10."""
    made, clock = Ghost(deepres.create("resnet14-cifar", width=0.25)), [0.0]
    for module, seconds in ((made.net.head, 10.0), *((block.sites[0].block, 1.0) for block in made.blocks)):

        def move(*_: object, seconds: float = seconds) -> None:
            clock[0] += seconds

        module.register_forward_hook(move)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    found = _time_to_next(made, torch.randn(4, 3, 8, 8), turns=2)
    assert found[:2] == [(2.0, 0.0), (12.0, 0.0)]  # of three segments with two blocks each; behind the third there is no exit
