"""Large tensors come from the pool while it is open, and nothing else changes."""

import subprocess
import sys

import pytest
import torch

from deepres.kernels import compiled, pooled_tensors

pytestmark = pytest.mark.skipif(compiled.library() is None, reason=f"kernels are {compiled.status()}")
LARGE = 1 << 20  # values


def test_tensors_keep_their_values_across_the_ends_of_the_pool() -> None:
    before = torch.arange(LARGE)
    with pooled_tensors():
        inside = torch.arange(LARGE)
        with pooled_tensors():
            nested = torch.arange(LARGE)
        again = nested.clone()
        del before
    after = torch.arange(LARGE)
    for tensor in (inside, nested, again):
        assert torch.equal(tensor, after)
        tensor.untyped_storage().resize_(2 * tensor.untyped_storage().nbytes())
        assert torch.equal(tensor, after)


def test_blocks_of_one_size_are_used_again() -> None:
    with pooled_tensors():
        first = torch.empty(LARGE)
        address = first.data_ptr()
        assert address % 64 == 0
        del first
        torch.empty(LARGE // 2)  # of another size: it does not take the block, which is unmapped for it
        second, third = torch.empty(LARGE), torch.empty(LARGE)
        addresses = {second.data_ptr(), third.data_ptr()}
        del second, third
        assert {torch.empty(LARGE).data_ptr()} <= addresses


def test_it_begins_and_ends_while_another_thread_allocates() -> None:
    """Tensors of a data loader's threads may be made and freed at any time."""
    from concurrent.futures import ThreadPoolExecutor

    def churn(seed: int) -> bool:
        return all(bool((torch.full((LARGE,), i + seed) == i + seed).all()) for i in range(20))

    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(churn, seed) for seed in range(3)]
        for _ in range(10):
            with pooled_tensors():
                assert churn(7)
        assert all(one.result() for one in found)


MEMORY = """
import contextlib, sys
import psutil, torch
from deepres.kernels import pooled_tensors

def grown():
    process = psutil.Process()
    before, most, kept = process.memory_info().rss, 0, []
    for size in (64, 48, 32, 24, 16):  # MiB in turn, each with small tensors in between
        live = []
        for _ in range(128 // size):
            live.append(torch.ones(size << 18))
            kept.append(torch.ones(1000))
        most = max(most, process.memory_info().rss - before)
        del live
    return most

with pooled_tensors():
    print(grown())
print(psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_it_holds_no_more_than_was_in_use_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < 140 << 20


def test_convolutions_whose_scratch_memory_crosses_its_ends_give_the_same() -> None:
    """oneDNN takes memory from PyTorch's allocator without a tensor, and gives it back to whatever is the allocator then."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 32, 3, padding=1)
    x = torch.randn(64, 16, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        layer(x).square().mean().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad

    expected = gradient()
    for _ in range(2):
        with pooled_tensors():
            assert torch.equal(gradient(), expected)
        assert torch.equal(gradient(), expected)
