"""``optimize`` with what people bring besides a float32 network in eval mode and full batches, and with folders that do not fit."""

from __future__ import annotations

import importlib.metadata
import math
import tomllib
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.engines import build_choice, fold_norms, throughput
from deepres.engines.answers import changed_answers, close_calls, margin_of
from deepres.engines.openvino_runner import OpenVINORunner
from deepres.engines.remembered import key_of
from deepres.engines.source import Source

FAST = ("torch-eager", "openvino", "onnxruntime")  # those that take no compiler
X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    net = deepres.create("resnet8-cifar", width=0.25)
    with torch.no_grad():
        net.train()(torch.randn(32, 3, 16, 16))
    return net.eval()


def test_every_module_keeps_its_mode(tmp_path: Path) -> None:
    """Frozen norms stay in eval mode in a network that trains."""
    net = network().train()
    net.stem.eval()
    before = [module.training for module in net.modules()]
    statistics = {name: value.clone() for name, value in net.named_buffers()}
    fast = deepres.optimize(net, X, engine=("torch-eager", "onnxruntime"), precision="float32", seconds=0.1)
    build_choice(net, X, fast.save(tmp_path / "fast"))
    throughput(net, X, repeats=1)
    with pytest.raises(DeepresError):
        deepres.optimize(net, X, engine="onnxruntime", precision="bf16")
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, statistics[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize("name", FAST)
def test_a_batch_without_inputs_has_no_answers(name: str) -> None:
    fast = deepres.optimize(network(), X, engine=name, precision="float32")
    assert fast(X[:0]).shape == (0, 10) and fast(X[:1]).shape == (1, 10)


def test_examples_without_inputs_and_engines_without_names_are_refused() -> None:
    with pytest.raises(DeepresError, match=r"example: holds no inputs \(it is of shape \(0, 3, 16, 16\)\)"):
        deepres.optimize(network(), X[:0])
    with pytest.raises(DeepresError, match="images: holds no inputs"):
        deepres.optimize(network(), X, images=X[:0], engine="torch-eager", measure=True)
    with pytest.raises(DeepresError, match="no engine is named; there are torch-eager, torch, "):
        deepres.optimize(network(), X, engine=())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_dtypes_run_in_the_precision_that_was_asked_for(dtype: torch.dtype) -> None:
    fast = deepres.optimize(network().to(dtype), X.to(dtype), engine="torch-eager", precision="float32")
    found = fast(X)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network()(X), rtol=0.1, atol=0.1)


def test_a_kept_engine_is_of_the_network_that_it_was_made_from(tmp_path: Path) -> None:
    """Trained on, or another network of this shape: what was kept would give the answers of old weights."""
    for name in ("openvino", "onnxruntime"):
        net = network()
        kept = deepres.optimize(net, X, engine=name, precision="float32").save(tmp_path / name)
        with torch.no_grad():
            net.head.fc.bias += 1
        with pytest.raises(DeepresError, match=f"{name}: holds the engine of a network with other weights"):
            build_choice(net, X, kept)
    fast = deepres.optimize(network(), X, engine="torch-eager", precision="float32")
    built = build_choice(net, X, fast.save(tmp_path / "torch"))  # which keeps no files, so it is built of the new weights
    with torch.no_grad():
        torch.testing.assert_close(built(X), net(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_kept_engine_that_cannot_be_loaded_is_a_sentence(name: str, tmp_path: Path) -> None:
    kept = deepres.optimize(network(), X, engine=name, precision="float32").save(tmp_path / "fast")
    file = next(file for file in kept.iterdir() if file.suffix in (".xml", ".onnx"))
    for damage in (lambda: file.write_bytes(b"nothing"), file.unlink):
        damage()
        with pytest.raises(DeepresError, match=r"fast: its engine cannot be loaded .*; run deepres optimize"):
            build_choice(network(), X, kept)


def test_a_choice_without_an_example_is_kept_too(tmp_path: Path) -> None:
    made = deepres.optimize(network(), engine="torch-eager", precision="float32")
    built = build_choice(network(), X, made.save(tmp_path / "fast"))
    assert torch.equal(built(X), made(X))


def test_files_that_openvino_cannot_write_are_a_sentence(tmp_path: Path) -> None:
    fast = deepres.optimize(network(), X, engine="openvino", precision="float32")
    (tmp_path / "fast" / "model.xml").mkdir(parents=True)
    with pytest.raises(DeepresError, match=r"fast: cannot be written .*; name another folder"):
        fast.save(tmp_path / "fast")


def test_remembered_choices_are_of_all_installed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {name.split(">")[0] for name in extras["export"]}
    source, known = Source(network(), X), importlib.metadata.version
    keys = {key_of(source, X)}
    for package in used:
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name, package=package: "0" if name == package else known(name)
        )
        keys.add(key_of(source, X))
    assert len(keys) == 1 + len(used)


class Masked(nn.Module):
    """Four classes, of which the last is masked out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))).masked_fill(torch.tensor([False, False, False, True]), -math.inf)


def test_classes_that_are_masked_out_do_not_hide_the_noise_of_the_others() -> None:
    exact = torch.randn(4000, 6)
    low = exact + 0.05 * torch.randn(4000, 6)
    margin = margin_of(low, exact)
    mask = torch.tensor([False, True, False, True, False, False])
    masked_exact, masked_low = exact.masked_fill(mask, -math.inf), low.masked_fill(mask, -math.inf)
    assert margin_of(masked_low, masked_exact) == pytest.approx(margin, rel=0.1)
    turned = (masked_low.argmax(1) != masked_exact.argmax(1)).nonzero()[:, 0].tolist()
    assert turned and set(turned) <= set(close_calls(masked_low, margin)) and len(close_calls(masked_low, margin)) < 2000
    assert changed_answers(masked_exact, masked_low) == len(turned) and changed_answers(masked_exact, masked_exact) == 0


def test_logits_that_overflow_are_computed_again() -> None:
    exact = torch.tensor([[3.0, 0.0, 1.0]] * 6)
    low = exact.clone()
    low[1], low[2, 1], low[3, 2] = math.nan, math.inf, math.nan
    margin = margin_of(low + torch.tensor([0.01, -0.01, 0.0]), exact)
    assert 0 < margin < 1 and close_calls(low, margin) == [1, 2, 3]
    assert changed_answers(exact, low) == 3 and changed_answers(low, low) == 0
    assert math.isnan(margin_of(torch.full_like(exact, math.nan), exact)) and close_calls(exact, math.nan) == [*range(6)]


@torch.no_grad()
def test_a_masked_class_is_kept_by_the_engines() -> None:
    fast = deepres.optimize(Masked(), X, engine=("torch-eager", "onnxruntime"), precision="float32", seconds=0.1)
    assert fast(X)[:, 3].isneginf().all() and not any(one.problem or one.changed for one in fast.candidates)


def test_exact_answers_of_a_language_model_are_not_claimed() -> None:
    net = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=7, context=8).eval()
    tokens = torch.randint(7, (4, 8))
    assert deepres.optimize(net, tokens, engine="torch-eager", precision="bf16").choice.answers == "close"
    with pytest.raises(
        DeepresError, match=r"precision bf16: exact answers .* the network gives \(4, 8, 7\); give precision float32"
    ):
        deepres.optimize(net, tokens, engine="torch-eager", precision="bf16", answers="exact")


def test_several_inputs_that_have_to_be_converted_live_as_long_as_the_call() -> None:
    a, b = (opset13.parameter([-1, 1000], np.float32) for _ in range(2))
    runner = OpenVINORunner(openvino.Model([opset13.subtract(a, b)], [a, b]), None, "float32")
    for _ in range(5):
        one, two = torch.randn(64, 1000, dtype=torch.float64), torch.randn(64, 1000, dtype=torch.float64)
        torch.testing.assert_close(runner.run([one, two])[0], one.float() - two.float())


@torch.no_grad()
def test_a_layer_with_hooks_is_not_folded() -> None:
    """Spectral norm sets the weight in a hook, before each call."""
    net = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    for _ in range(3):
        net.train()(5 * X + 1)
    torch.testing.assert_close(fold_norms(net)(X), net.eval()(X))
