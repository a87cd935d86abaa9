"""The fused norm, sum and activation against PyTorch's, in value, gradient, memory and every dtype; and the build of its kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from deepres.kernels import compiled, norm_act
from deepres.kernels.gradient_sums import SumsIntoNorms
from deepres.kernels.norm_act import BACKWARD, FORWARD

SHAPES = [(4, 16, 9, 7), (2, 64, 8, 8), (2, 96, 12, 12), (3, 17, 5, 5), (2, 1, 6, 6), (8, 130, 3, 3), (1, 5, 1, 2)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, *, layout: torch.memory_format = torch.channels_last) -> list[Tensor]:
    """x with a mean far from zero, weight, bias, shortcut, and a gradient for the output."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    c = shape[1]
    x = 3 + draw(*shape) * (0.5 + draw(1, c, 1, 1).abs())
    big = [t.to(dtype).contiguous(memory_format=layout) for t in (x, draw(*shape), draw(*shape))]
    small = torch.promote_types(dtype, torch.float32)
    return [big[0], (1 + draw(c)).to(small), draw(c).to(small), big[1], big[2]]


def reference(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """In float64, by PyTorch's own operations."""
    y = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), training=True)
    y = y if shortcut is None else y + shortcut.double()
    return y.relu() if relu else y


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]


@pytest.mark.parametrize("usual", [torch.float64, torch.bfloat16])
def test_pytorchs_default_type_changes_nothing(usual: torch.dtype) -> None:
    x, weight, bias, shortcut, _ = inputs((2, 64, 8, 8), torch.float32)
    expected = norm_act(x, weight, bias, shortcut)
    torch.set_default_dtype(usual)
    try:
        found = norm_act(x, weight, bias, shortcut)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("relu", "add"), [(True, True), (True, False), (False, False)])
def test_values_and_gradients_are_pytorchs(shape: tuple[int, ...], dtype: torch.dtype, relu: bool, add: bool) -> None:
    x, weight, bias, shortcut, gradient = inputs(shape, dtype)
    mine, theirs = leaves([x, weight, bias, shortcut]), leaves([x.double(), weight.double(), bias.double(), shortcut.double()])
    y, mean, variance, count = norm_act(*mine[:3], mine[3] if add else None, relu=relu)
    expected = reference(*theirs[:3], theirs[3] if add else None, relu)
    assert y.dtype == dtype and not mean.requires_grad and int(count) == x.numel() // x.shape[1]
    exact = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    scale = float(expected.detach().abs().max())
    assert float((y.detach().double() - expected.detach()).abs().max()) <= exact * max(scale, 1.0)
    # Where rounding moves an output over the ReLU's corner the gradients differ rightly; such places get none.
    clear = (expected.detach().abs() > 0.02 * scale) | (expected.detach() == 0) & (y.detach() == 0)
    gradient = gradient * clear if relu else gradient
    y.backward(gradient)
    expected.backward(gradient.double())
    for ours, other in zip(mine[: 4 if add else 3], theirs, strict=False):
        assert ours.grad is not None and other.grad is not None
        size = float(other.grad.abs().max())
        assert float((ours.grad.double() - other.grad).abs().max()) <= 4 * exact * max(size, 1.0)
    assert (mine[3].grad is None) != add


@pytest.mark.parametrize("add", [True, False])
def test_gradients_against_finite_differences(add: bool) -> None:
    x, weight, bias, shortcut, _ = inputs((3, 4, 3, 2), torch.float64)
    arguments = [t.requires_grad_() for t in (x, weight, bias, *([shortcut] if add else []))]
    assert torch.autograd.gradcheck(lambda *a: norm_act(*a, relu=False)[0], arguments)
    assert torch.autograd.gradcheck(lambda *a: norm_act(*a, relu=True)[0], arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own look at its copies
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_registered_as_pytorch_wants(dtype: torch.dtype) -> None:
    x, weight, bias, shortcut, _ = inputs((2, 16, 4, 4), dtype)
    for add in (shortcut.requires_grad_(), None):
        arguments = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), add, 1e-5, True, False)
        found = torch.library.opcheck(FORWARD, arguments)
        assert found and set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_every_call(dtype: torch.dtype) -> None:
    x, weight, bias, shortcut, gradient = inputs((16, 64, 14, 14), dtype)
    runs = []
    for _ in range(3):
        mine = leaves([x, weight, bias, shortcut])
        y = norm_act(*mine)[0]
        y.backward(gradient)
        runs.append([y, *(t.grad for t in mine)])
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert one is not None and two is not None and torch.equal(one, two)


def test_any_memory_layout_gives_the_same() -> None:
    x, weight, bias, shortcut, gradient = inputs((4, 16, 6, 6), torch.float32)
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        mine = leaves([x.contiguous(memory_format=layout), weight, bias, shortcut])
        y = norm_act(*mine)[0]
        y.backward(gradient)
        results.append([y, *(t.grad for t in mine)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    for shape in ((2, 16, 4, 4), (1, 5, 3, 3)):
        x, weight, bias, _, _ = inputs(shape, dtype)
        x[0, 1] = float("nan")
        y = norm_act(x, weight, bias)[0]
        assert bool(y[:, 1].isnan().all()) and bool(y[:, 2:].isfinite().all())


@pytest.mark.parametrize("add", [True, False])
def test_what_is_saved_is_the_input_and_behind_a_sum_the_output(add: bool) -> None:
    x, weight, bias, shortcut, _ = inputs((8, 32, 8, 8), torch.float32)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = norm_act(*(t.requires_grad_() for t in (x, weight, bias)), shortcut.requires_grad_() if add else None)[0]
    # two parameters, mean and variance, and the count
    assert sum(saved.values()) == x.nbytes + (y.nbytes if add else 0) + 4 * weight.nbytes + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_of_the_input_is_that_of_the_output(dtype: torch.dtype) -> None:
    """A channel whose norm is exactly zero, values around the ReLU's corner, and tails that fill no vector."""
    for shape in SHAPES:
        x, weight, bias, _, gradient = inputs(shape, dtype)
        weight[0] = bias[0] = 0.0
        mine = leaves([x, weight, bias, torch.zeros_like(x)])
        alone = leaves([x, weight, bias])
        for arguments in (mine, alone):  # a shortcut of zeros changes no output, and its mask is taken from the output
            norm_act(*arguments)[0].backward(gradient)
        for one, other in zip(mine, alone, strict=False):
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def backward_of_sum(rest: tuple[Any, ...], one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    return BACKWARD(one + other, None, *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("relu", "add"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_sum_of_gradients_that_the_norm_takes_gives_the_same_bits(dtype: torch.dtype, relu: bool, add: bool) -> None:
    """The backward pass of a block and of the norm in front of it, as compiling sees it, before and after sums go into norms."""
    for shape in SHAPES:
        x, weight, bias, shortcut, gradient = inputs(shape, dtype)
        y, mean, variance, count = norm_act(x, weight, bias, shortcut if add else None, relu=relu)
        rest = (x, y if add else None, weight, bias, mean, variance, count, 1e-5, relu, add, False)

        graph = make_fx(partial(backward_of_sum, rest))(gradient, shortcut)
        before = graph(gradient, shortcut)
        SumsIntoNorms()(graph.graph)
        graph.recompile()
        assert "add" not in graph.code
        for one, other in zip(before, graph(gradient, shortcut), strict=True):
            assert torch.equal(one, other)


def test_a_sum_that_others_read_or_that_spreads_stays() -> None:
    x, weight, bias, shortcut, gradient = inputs((2, 16, 4, 4), torch.float32)
    y, mean, variance, count = norm_act(x, weight, bias, shortcut)
    rest = (x, y, weight, bias, mean, variance, count, 1e-5, True, True, False)

    def read_twice(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        total = one + other
        return (*BACKWARD(total, None, *rest), total)

    def scaled(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return BACKWARD(torch.add(one, other, alpha=2), None, *rest)

    plain = partial(backward_of_sum, rest)
    for function, other in (
        (read_twice, shortcut),
        (scaled, shortcut),
        (plain, shortcut[:, :, :1]),
        (plain, shortcut.contiguous()),
    ):
        graph = make_fx(function)(gradient, other)
        SumsIntoNorms()(graph.graph)
        assert [node.args[1] for node in graph.graph.find_nodes(op="call_function", target=BACKWARD)] == [None]


def test_a_mean_that_is_large_cancels_nothing() -> None:
    x = (1000 + torch.randn(64, 16, 16, 16)).contiguous(memory_format=torch.channels_last)
    _, _, variance, _ = norm_act(x, torch.ones(16), torch.zeros(16))
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


SCRIPT = """
import torch
from deepres.kernels import norm_act, status
print(status())
norm_act(torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last), torch.ones(4), torch.zeros(4))
"""


def run(cache: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "DEEPRES_CACHE": str(cache), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_without_a_compiler_it_runs_eagerly_and_says_why(tmp_path: Path) -> None:
    for environment, reason in (
        ({"PATH": str(tmp_path), "CXX": ""}, "no C++ compiler"),
        ({"DEEPRES_KERNELS": "eager"}, "is set"),
    ):
        process = run(tmp_path / "cache", **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.startswith("eager: ") and reason in out


def test_a_compiler_that_fails_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'norm_act.cpp:1: error: out of ideas' >&2\nexit 1\n")
    broken.chmod(0o755)
    out, err = run(tmp_path / "cache", CXX=str(broken)).communicate(timeout=120)
    assert "out of ideas" in out, err
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.skipif(compiled.library() is None, reason=f"kernels are {compiled.status()}")
def test_two_processes_build_once_and_both_have_it(tmp_path: Path) -> None:
    processes = [run(tmp_path) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0 and out.startswith("compiled for"), err
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.skipif(compiled.library() is None, reason=f"kernels are {compiled.status()}")
def test_the_kernels_for_other_processors_give_the_same(tmp_path: Path) -> None:
    """AVX-512 processors can run the AVX2 kernels too."""
    if compiled.status().capability == "AVX2":
        return
    script = (
        "import torch; from unittest import mock\n"
        "with mock.patch('torch.backends.cpu.get_cpu_capability', lambda: 'AVX2'):\n"
        "    from deepres.kernels import status\n    assert status().capability == 'AVX2', status()\n"
        "from tests.kernels.test_norm_act import test_values_and_gradients_are_pytorchs as check, SHAPES\n"
        "for shape in SHAPES:\n    for dtype in (torch.float32, torch.bfloat16):\n"
        "        [check(shape, dtype, True, add) for add in (True, False)]\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "DEEPRES_CACHE": str(tmp_path)}, capture_output=True, text=True, timeout=240,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
