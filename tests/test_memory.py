"""Recomputing saves memory and changes nothing else."""

import pytest
import torch
import torchvision
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.nn.count import saved_bytes
from deepres.train import memory

CPU = torch.device("cpu")


def step(model: nn.Module, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    model.train()
    with saved_bytes(model) as saved:
        loss = model(x).square().mean()
    loss.backward()
    return saved.total, [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("build", [lambda: deepres.create("resnet56-cifar"), lambda: torchvision.models.resnet18()])
@pytest.mark.parametrize("length", [1, 3, 100])
def test_recomputing_gives_the_same_bits_for_less(build, length: int) -> None:
    torch.manual_seed(0)
    whole = build()
    torch.manual_seed(0)
    bounded = build()
    memory.recompute(bounded, length)
    assert bounded.state_dict().keys() == whole.state_dict().keys()
    x = torch.randn(4, 3, 32, 32)
    (more, expected), (less, got) = step(whole, x), step(bounded, x)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert less < more
    memory.recompute(bounded, 0)
    bounded.zero_grad()
    assert step(bounded, x)[0] == more


def test_the_segments_follow_from_the_limit() -> None:
    model = deepres.create("resnet110-cifar")
    shape = (3, 32, 32)
    needed = memory.activation_bytes(model, shape, CPU) * 32
    assert memory.fit(model, shape, 32, CPU, limit=1 << 40) == 0
    base = memory.psutil.Process().memory_info().rss
    length = memory.fit(model, shape, 32, CPU, limit=base + needed // 3)
    assert 1 <= length < 54
    with pytest.raises(DeepresError, match=r"needs about .* GiB and .* lower --batch"):
        memory.fit(model, shape, 32, CPU, limit=base + 1000)


def test_running_statistics_are_untouched_by_measuring() -> None:
    model = deepres.create("resnet20-cifar")
    before = [b.clone() for b in model.buffers()]
    memory.activation_bytes(model, (3, 32, 32), CPU)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_a_bounded_run_ends_where_an_unbounded_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"net": "resnet20-cifar", "data": "digits", "recipe": "digits", "epochs": 1, "speed": "exact", "width": 0.5}
    whole = deepres.train(Run(**run, memory="all"), show=False)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 60 << 20)
    bounded = deepres.train(Run(**run), show=False)
    assert [r.loss for r in bounded.history] == [r.loss for r in whole.history]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), bounded.model.parameters(), strict=True))
