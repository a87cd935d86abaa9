"""Mending: the fit is numpy's, the folded network computes the unfolded one, and no fit is worse than the deletion alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import deepres
from deepres.adapters import delete_blocks, find_blocks, logits_of
from deepres.adapters.families.timm_efficientnet import ADAPTER
from deepres.data import open_data
from deepres.shrinking.least_squares import LeastSquares
from deepres.shrinking.mending import Gap, Mended, find_gaps, mend
from deepres.shrinking.writer import Writer
from deepres.training import Run, Trainer, recipe
from deepres.training.distribute import DistributedContext
from tests.nn.test_nn import scramble


def rows(n: int = 60, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(n, width, generator=generator) + 1
    return f, torch.randn(n, width, generator=generator) + f @ torch.randn(width, width, generator=generator)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_map_is_the_least_squares_solution_of_numpy(intercept: bool) -> None:
    f, r = rows()
    fit = LeastSquares("map", 5, intercept=intercept, device=torch.device("cpu"), ridge=0.0)
    for part in range(0, 60, 20):  # batch by batch
        fit.add(f[part : part + 20], r[part : part + 20])
    change, shift = fit.solve()
    left = np.hstack([f.double().numpy(), np.ones((60, 1 if intercept else 0))])
    expected, residuals, *_ = np.linalg.lstsq(left, r.double().numpy(), rcond=None)
    np.testing.assert_allclose(change.T.numpy(), expected[:5], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(shift.numpy(), expected[5] if intercept else np.zeros(5), rtol=1e-8, atol=1e-10)
    assert fit.error(change, shift) == pytest.approx(residuals.sum(), rel=1e-9)
    assert fit.error() == pytest.approx(float(r.double().square().sum()))


def test_a_scale_is_a_regression_of_each_channel() -> None:
    f, r = rows()
    fit = LeastSquares("scale", 5, intercept=True, device=torch.device("cpu"), ridge=0.0)
    fit.add(f, r)
    change, shift = fit.solve()
    for i in range(5):
        left = np.stack([f[:, i].double().numpy(), np.ones(60)], 1)
        (slope, constant), *_ = np.linalg.lstsq(left, r[:, i].double().numpy(), rcond=None)
        assert float(change[i, i]) == pytest.approx(slope, rel=1e-8)
        assert float(shift[i]) == pytest.approx(constant, rel=1e-8)
    assert torch.equal(change, change.diagonal().diag())


def test_a_ridge_pulls_towards_changing_nothing_and_is_numpy_s_on_more_rows() -> None:
    f, r = rows()
    fit = LeastSquares("map", 5, intercept=False, device=torch.device("cpu"), ridge=0.5)
    fit.add(f, r)
    change, shift = fit.solve()
    strength = (0.5 * f.double().square().mean() * 60).sqrt()
    left = np.vstack([f.double().numpy(), float(strength) * np.eye(5)])
    expected, *_ = np.linalg.lstsq(left, np.vstack([r.double().numpy(), np.zeros((5, 5))]), rcond=None)
    np.testing.assert_allclose(change.T.numpy(), expected, rtol=1e-8)
    assert fit.error(change, shift) < fit.error()


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=30, n_positions=16, bos_token_id=0, eos_token_id=0,
                                      use_cache=False))  # fmt: skip


SE = {"attn_layer": "se"}
NETS: dict[str, tuple[Callable[[], nn.Module], list[str], set[str]]] = {
    # builder, deleted blocks, kinds that can be folded
    "ours": (lambda: deepres.create("resnet20-cifar", num_classes=10), ["stages.0.blocks.1", "stages.2.blocks.2"], {"scale", "map"}),
    "ours, preact": (lambda: deepres.create("resnet20-cifar-preact"), ["stages.1.blocks.1"], {"scale", "map"}),
    "torchvision, bottleneck": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [3, 1, 1, 1], 10, width_per_group=8),
        ["layer1.1", "layer1.2"],
        {"scale", "map"},
    ),
    # the block in front has no shortcut
    "timm EfficientNet": (ADAPTER.examples[0].build, ["blocks.1.1"], {"scale", "map"}),
    "timm with squeeze and excitation": (
        lambda: timm.models.ResNet(timm.models.resnet.BasicBlock, (2, 1, 1, 1), 10, channels=(8, 8, 8, 8), block_args=SE),
        ["layer1.1"],
        set(),
    ),
    "GPT-2": (gpt2, ["transformer.h.1", "transformer.h.2"], {"scale", "map"}),
}  # fmt: skip


def trainer_of(model: nn.Module, name: str, tmp_path) -> Trainer:  # type: ignore[no-untyped-def]
    if "GPT" in name:
        text = tmp_path / "play.txt"
        text.write_text("to be, or not to be: that is the question.\n" * 60)
        data = open_data(text, size=16)
    else:
        digits = open_data("digits")
        pixels = digits.train.pixels[:96].repeat(1, 3, 4, 4)  # type: ignore[union-attr]
        prepare = dataclasses.replace(digits.prepare, mean=(0.5,) * 3, std=(0.5,) * 3, size=32)
        train = dataclasses.replace(digits.train, pixels=pixels, labels=digits.train.labels[:96])  # type: ignore[union-attr, type-var]
        data = dataclasses.replace(digits, train=train, prepare=prepare)
    run = Run("given", "x", recipe("digits", batch=16), speed="exact", memory="all")
    return Trainer(run, data, DistributedContext(torch.device("cpu")), model)


def error_behind(trainer: Trainer, whole: nn.Module, gap: Gap) -> float:
    """Squared error of the signal behind the gap, on the examples of the fit."""
    seen: dict[str, Tensor] = {}
    total = 0.0
    hooks = [
        module.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out[0] if isinstance(out, tuple) else out}))
        for key, module in (("y", whole.get_submodule(gap.removed[-1])), ("u", gap.block))
    ]
    for batch in trainer.loader.some(2560):
        logits_of(whole.eval(), batch.images)
        logits_of(trainer.model.eval(), batch.images)
        total += float((seen["y"] - seen["u"]).double().square().sum())
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("kind", ["scale", "map"])
@pytest.mark.parametrize("name", list(NETS))
def test_a_mended_network_is_the_fit_and_no_worse_than_the_deletion(name: str, kind, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    build, gone, folds = NETS[name]
    model = scramble(build())
    whole = copy.deepcopy(model)
    trainer = trainer_of(model, name, tmp_path)
    with torch.no_grad():
        gaps = find_gaps(model, find_blocks(model), gone)
        delete_blocks(model, gone)
        plain = [error_behind(trainer, whole, gap) for gap in gaps]
        layers = [type(module) for module in model.modules()]
        before = copy.deepcopy(model.state_dict())
        said: list[str] = []
        found = mend(trainer, whole, gaps[:1], kind, said.append)
        if kind not in folds:
            assert not found and "nothing is fitted in place of" in said[0]
            assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
            return
        (one,) = found
        assert one.after < one.before and one.removed == gaps[0].removed
        assert error_behind(trainer, whole, gaps[0]) <= plain[0] * (1 + 1e-5)
        mend(trainer, whole, gaps[1:], kind, said.append)
        assert [type(module) for module in model.modules()] == layers  # no layer more


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_map_folds_into_a_convolution_and_its_norm(norm: bool, kernel: int) -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv2d(4, 6, kernel, padding=kernel // 2), *([nn.BatchNorm2d(6)] if norm else []))
    scramble(branch)
    x = torch.randn(8, 4, 5, 5)
    matrix, shift = torch.randn(6, 6).double(), torch.randn(6).double()
    f = branch(x).detach()
    flat = f.movedim(1, -1).reshape(-1, 6).double()
    writer = Writer.find([branch])
    assert writer is not None and writer.maps and writer.shifts and writer.width == 6
    before = copy.deepcopy(branch.state_dict())
    undo = writer.fold(matrix, shift, flat.mean(0), flat.T.cov(correction=0))
    expected = torch.einsum("oc,nchw->nohw", matrix, f.double()) + shift[:, None, None]
    torch.testing.assert_close(branch(x).double(), expected, rtol=1e-4, atol=1e-4)
    if norm:  # the statistics are those of its input, so that training goes on from here
        torch.testing.assert_close(branch[1].running_var, branch[0](x).var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(branch[1].running_mean, branch[0](x).mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    undo()
    assert all(torch.equal(tensor, before[key]) for key, tensor in branch.state_dict().items())


def test_weights_that_are_used_twice_are_left_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = scramble(deepres.create("resnet20-cifar", num_classes=10))
    blocks = model.stages[0].blocks
    blocks[0].branch[-1].weight = blocks[2].branch[-1].weight
    whole = copy.deepcopy(model)
    gaps = find_gaps(model, find_blocks(model), ["stages.0.blocks.1"])
    delete_blocks(model, ["stages.0.blocks.1"])
    said: list[str] = []
    assert mend(trainer_of(model, "", tmp_path), whole, gaps, "scale", said.append) == []
    assert "does not end in layers that can take up a fit" in said[0]


def test_a_run_of_blocks_is_one_gap_and_one_without_a_block_in_front_is_none() -> None:
    model = deepres.create("resnet32-cifar")
    gone = ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.2", "stages.1.blocks.3", "stages.2.blocks.4"]
    found = [(gap.path, gap.removed) for gap in find_gaps(model, find_blocks(model), gone)]
    assert found == [("stages.1.blocks.1", gone[2:4]), ("stages.2.blocks.3", gone[4:])]


def test_what_was_mended_is_told_and_kept(tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = {"recipe": "digits", "speed": "exact", "memory": "all", "show": False}
    first = deepres.train(Run("resnet14-cifar", "digits", "digits", width=0.5, epochs=2, speed="exact"), show=False)
    said: list[str] = []
    small = deepres.shrink(first.model, "digits", "blocks=4", epochs=1, removal="at-once", select="greedy", mend="map", features=1.0,
                           out=tmp_path / "run", log=said.append, **options)  # fmt: skip
    assert small.blocks == (6, 4) and set(small.identity_at.values()) == {0}
    assert small.mended and all(isinstance(one, Mended) and one.after < one.before for one in small.mended)
    assert any("a fit replaces what was deleted" in line for line in small.summary())
    assert small.to_dict()["mended"][0]["removed"]
    assert any("was fitted to what" in line for line in said)
