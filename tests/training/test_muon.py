"""Muon beside AdamW: each parameter by its own rule, one state for checkpoints, and networks that it does not suit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError
from deepres.nn.transformers import transformer
from deepres.training import recipe
from deepres.training.optimizer import MuonAndAdamW, last_step, optimizer_for, set_rate

TOKENS = torch.arange(24).view(2, 12) % 20


def small() -> nn.Module:
    torch.manual_seed(0)
    return transformer("llama-tiny", depth=1, width=16, heads=2, kv_heads=1, hidden=32, vocabulary=20, context=12)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
    optimizer.step()


def test_matrices_take_the_steps_of_muon_and_the_rest_those_of_adamw() -> None:
    ours, theirs = small(), small()
    how = recipe("language-muon", lr=0.01, weight_decay=0.1)
    optimizer = optimizer_for(ours, how)
    inside = [p for name, p in theirs.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    norms = [p for p in theirs.parameters() if p.ndim == 1]
    outside = [theirs.embed.weight, theirs.head.weight]
    assert len(inside) == 4 and len(inside) + len(norms) + len(outside) == len([*theirs.parameters()])
    muon = torch.optim.Muon(inside, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": outside}, {"params": norms, "weight_decay": 0.0}], 0.01, (0.9, 0.99), weight_decay=0.1
    )
    for _ in range(3):
        step(ours, optimizer)
        step(theirs, muon)
        adamw.step()
        adamw.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_of_a_matrix_is_orthogonal_and_as_large_as_adamws() -> None:
    model = small()
    optimizer = optimizer_for(model, recipe("language-muon", lr=0.01, weight_decay=0.0))
    weight = model.blocks[1].branch.core.down.weight
    before = weight.detach().clone()
    step(model, optimizer)
    change = before - weight.detach()
    sizes = torch.linalg.svdvals(change)
    assert float(sizes.min() / sizes.max()) > 0.4  # Newton-Schulz leaves singular values between 0.7 and 1.2 of one size
    assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)  # AdamW's steps: 0.2 to 0.4 of the rate


def test_its_state_goes_into_a_checkpoint_and_back() -> None:
    model = small()
    optimizer = optimizer_for(model, recipe("language-muon"))
    step(model, optimizer)
    again = small()
    again.load_state_dict(model.state_dict())
    other = optimizer_for(again, recipe("language-muon"))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(model, optimizer)
        step(again, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_rate_reaches_both_and_the_momentum_adamw_alone() -> None:
    optimizer = optimizer_for(small(), recipe("language-muon"))
    assert isinstance(optimizer, MuonAndAdamW)
    set_rate(optimizer, 0.5, 0.8)
    assert {group["lr"] for group in (*optimizer.muon.param_groups, *optimizer.adamw.param_groups)} == {0.5}
    assert optimizer.muon.param_groups[0]["momentum"] == 0.95 and optimizer.adamw.param_groups[0]["betas"][0] == 0.8
    matrix = optimizer.muon.param_groups[0]["params"][0]
    assert last_step(optimizer, matrix, optimizer.param_groups[0]) is None


def test_networks_without_matrices_are_told_so() -> None:
    with pytest.raises(DeepresError, match="has none"):
        optimizer_for(deepres.create("resnet8-cifar"), recipe("language-muon"))
