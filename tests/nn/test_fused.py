"""Accelerated networks compute, learn and keep what the ordinary ones do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepres
from deepres.nn.fused import FusedNorm, FusedResidual, accelerate, restore

NETS = ["resnet8-cifar", "resnet8-cifar-c", "resnet11-cifar-bottleneck", "resnet8-cifar-preact", "plain8-cifar", "resnet18"]


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    model = deepres.create(name, width=0.5, num_classes=7).to(memory_format=torch.channels_last)
    return model, accelerate(copy.deepcopy(model))


def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(8) % 7


@pytest.mark.parametrize("name", NETS)
def test_a_training_step_is_the_same(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair(name)
    alone = [type(m) for m in fused.modules() if isinstance(m, nn.BatchNorm2d) and not isinstance(m, FusedNorm)]
    projections = sum("shortcut.norm.weight" in key for key in ordinary.state_dict())
    assert len(alone) == projections + (3 if "plain" in name else 0)  # and the last norm of a plain block, whose ReLU is apart
    expected, found = step(ordinary, *batch), step(fused, *batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        assert float((found[1][key] - gradient).norm()) <= 5e-3 * float(gradient.norm()) + 1e-5, key
    for key, tensor in ordinary.state_dict().items():  # running statistics too
        torch.testing.assert_close(fused.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_eval_is_the_same_to_the_bit_and_back_is_back(name: str, batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair(name)
    expected = ordinary.eval()(batch[0])
    assert torch.equal(fused.eval()(batch[0]), expected)
    kinds = [type(m) for m in ordinary.modules()]
    assert [type(m) for m in restore(fused).modules()] == kinds
    assert torch.equal(fused(batch[0]), expected) and fused.state_dict().keys() == ordinary.state_dict().keys()


def test_sites_see_what_they_see_elsewhere(batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair("resnet8-cifar")
    assert any(isinstance(m, FusedResidual) for m in fused.modules())
    for mode in (True, False):
        seen: list[list[Tensor]] = []
        for model in (ordinary.train(mode), fused.train(mode)):
            found: list[Tensor] = []
            site = deepres.sites(model)[1]
            with torch.no_grad(), site.observe(lambda o, found=found: found.extend((o.x, o.shortcut, o.branch, o.out))):
                found.append(model(batch[0]))
            with torch.no_grad(), site.bypass():
                found.append(model(batch[0]))
            with torch.no_grad(), site.scale(0.5):
                found.append(model(batch[0]))
            seen.append(found)
        assert len(seen[0]) == len(seen[1]) == 7
        for one, two in zip(*seen, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_a_step_in_bf16_is_as_close_as_pytorchs(batch: tuple[Tensor, Tensor]) -> None:
    ordinary, fused = pair("resnet8-cifar")
    exact = step(copy.deepcopy(ordinary), *batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (step(model, *batch)[0].float() for model in (ordinary, fused))
    assert float((ours - exact).norm()) < 1.5 * float((theirs - exact).norm()) + 1e-3


def test_one_value_per_channel_is_refused() -> None:
    fused = accelerate(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    with pytest.raises(ValueError, match="more than one value"):
        fused(torch.randn(1, 3, 1, 1))
