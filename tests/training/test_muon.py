"""Muon beside AdamW and beside SGD: each parameter by its own rule, one state for checkpoints, and networks that it does not suit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.nn.transformer_zoo import transformer
from deepres.training import recipe
from deepres.training.muon import MuonAndSGD, orthogonalised
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


IMAGES, LABELS = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return deepres.create("resnet8-cifar").train()


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(2, 16, 144), (1, 30, 9)])
def test_the_iteration_comes_close_to_the_polar_factor(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalised(matrices)
    sizes = torch.linalg.svdvals(found)
    assert float(sizes.min()) > 0.6 and float(sizes.max()) < 1.25
    alike = (found * (left @ right)).sum() / found.norm() / (left @ right).norm()
    assert float(alike) > 0.98


def test_convolutions_in_branches_take_the_steps_of_muon_and_the_rest_those_of_sgd() -> None:
    ours, theirs, rate = convolutional(), convolutional(), recipe("muon-cifar").lr
    optimizer = optimizer_for(ours, recipe("muon-cifar"))
    assert isinstance(optimizer, MuonAndSGD)
    own = optimizer.param_groups[0]["params"]
    names = [name for name, p in ours.named_parameters() if any(p is q for q in own)]
    assert len(names) == 6 and all(".branch." in name for name in names)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    learn(ours, optimizer)
    rest = [p for name, p in theirs.named_parameters() if name not in names]
    groups = [{"params": [p for p in rest if p.ndim >= 2]}, {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}]
    learn(theirs, torch.optim.SGD(groups, rate, 0.9, nesterov=True, weight_decay=5e-4))
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name not in names:
            torch.testing.assert_close(one, other)
            continue
        rows = len(one)
        step = (before[name] * (rows**0.5 / before[name].norm()) - one).detach().flatten(1) / rate
        sizes = torch.linalg.svdvals(step)
        assert float(sizes.min()) > 0.6 and float(sizes.max()) < 1.25  # a change of the rate, of a weight with rows of norm 1


def test_muon_and_sgd_have_one_state_and_one_rate() -> None:
    model, again = convolutional(), convolutional()
    optimizer, other = (optimizer_for(one, recipe("muon-cifar")) for one in (model, again))
    learn(model, optimizer)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        for one, how in ((model, optimizer), (again, other)):
            set_rate(how, 0.1, 0.8)
            learn(one, how)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {group["lr"] for group in (other.param_groups[0], *other.sgd.param_groups)} == {0.1}
    assert last_step(other, other.param_groups[0]["params"][0], other.param_groups[0]) is None
    assert last_step(other, other.param_groups[1]["params"][0], other.param_groups[1]) is not None


def test_networks_without_convolutions_are_told_so() -> None:
    with pytest.raises(DeepresError, match=r"the convolutions of residual branches, and this network has none.*'sgd'"):
        optimizer_for(small(), recipe("muon-cifar"))


def test_it_learns_in_few_steps() -> None:
    """SGD at a rate of 0.05, 0.1 or 0.2 ends at 24 to 35 %."""
    result = deepres.train(Run("resnet8-cifar", "digits", recipe("muon-cifar", epochs=3), speed="exact"), show=False)
    assert result.test.top1 < 18
