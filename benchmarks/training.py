"""Training steps side by side: CIFAR ResNet-20 at batch 128, ResNet-50 at 224 and batch 16.

The peers' step is forward, backward and update; ours is ``Trainer.step``, which also seeds, checks that loss and gradient
are finite and keeps the sums that are logged. Each candidate runs in a process of its own, as it would for its users: ours with
what ``deepres.train`` sets for a run (denormals off, freed memory kept), one peer with these settings too.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable

import torch
import torchvision

from benchmarks.common import BF16, Remote, alternate, record, summary
from benchmarks.peers import CifarResNet, Step
from deepres import Run
from deepres.data import Batch, Data, Prepare, Resident
from deepres.training import Trainer, recipe
from deepres.training.distribute import DistributedContext
from deepres.training.heap import heap_kept
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness

CASES: dict[str, tuple[Callable[[], torch.nn.Module], int, int, int]] = {  # peer, batch, size, classes
    "resnet20-cifar": (lambda: CifarResNet(20), 128, 32, 10),
    "resnet50": (torchvision.models.resnet50, 16, 224, 1000),
}
_settings = contextlib.ExitStack()  # of this process, for as long as it lives


def examples(net: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    _, batch, size, classes = CASES[net]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.randn(batch, 3, size, size, device=device), torch.randint(0, classes, (batch,), device=device)


def trainer_on(net: str, images: torch.Tensor, labels: torch.Tensor, classes: int, speed: str) -> tuple[Trainer, Batch]:
    """A trainer of ours, and the batch that it steps on."""
    size = images.shape[-1]
    split = Resident(torch.randint(0, 256, images.shape, dtype=torch.uint8), labels)
    names = tuple(map(str, range(classes)))
    data = Data("random", names, split, split, split, Prepare(size, 3, (0.5,) * 3, (0.25,) * 3))
    run = Run(net, "random", recipe("paper-cifar", batch=len(labels)), speed=speed, memory="all")
    trainer = Trainer(run, data, DistributedContext(images.device))
    trainer.model.train()
    return trainer, next(trainer.loader.epoch(0))


def ours(net: str, speed: str) -> tuple[Callable[[], None], str]:
    trainer, batch = trainer_on(net, *examples(net), CASES[net][3], speed)
    _settings.enter_context(exactness(SPEEDS[trainer.speed.name]))
    _settings.enter_context(trainer.heap())
    return lambda: trainer.step(batch), f"deepres --speed {speed}" + (f" ({trainer.speed.name})" if speed == "auto" else "")


def peer(net: str, name: str, bf16: bool, last: bool, compile: bool, set_up: bool = False) -> tuple[Callable[[], None], str]:
    step = Step(CASES[net][0](), *examples(net), bf16=bf16, last=last, compile=compile)
    if set_up:
        _settings.enter_context(exactness(SPEEDS["float32"]))
        _settings.enter_context(heap_kept())
    return step, name


def floor(net: str, bf16: bool) -> tuple[Callable[[], None], str]:
    """The network's convolutions alone, forward and backward, as precise as the tuned peer: no norm, sum, activation, update."""
    images, _ = examples(net)
    model = CASES[net][0]().to(images.device)
    calls: list[tuple[torch.nn.Conv2d, torch.Size]] = []
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda m, args: calls.append((m, args[0].shape))) for m in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    kind = torch.bfloat16 if bf16 else torch.float32
    ready = []
    for i, (layer, shape) in enumerate(calls):
        alone = copy.deepcopy(layer).to(kind).to(memory_format=torch.channels_last)
        x = torch.randn(shape, device=images.device, dtype=kind).to(memory_format=torch.channels_last).requires_grad_(i > 0)
        ready.append((alone, x, torch.randn_like(alone(x))))

    def run() -> None:
        for alone, x, grad in ready:
            wanted = [alone.weight] + ([x] if x.requires_grad else [])
            torch.autograd.grad(alone(x), wanted, grad)

    return run, "floor: its convolutions alone"


def compare(net: str, groups: int, turns: int) -> dict[str, object]:
    """All candidates in turns; then all over again in fresh processes, since where one's memory lies can last for its life."""
    kind = " bf16" if BF16 else ""
    times: dict[str, list[float]] = {}
    for _ in range(groups):
        candidates = [
            Remote(peer, net, "peer as it is", False, False, False),
            Remote(peer, net, f"peer channels-last{kind}", BF16, True, False),
            Remote(peer, net, f"peer channels-last{kind} compiled", BF16, True, True),
            Remote(peer, net, f"peer{kind} compiled", BF16, False, True),
            Remote(peer, net, f"with our settings: peer channels-last{kind} compiled", BF16, True, True, True),
            Remote(ours, net, "auto"),
            Remote(ours, net, "exact"),
            Remote(floor, net, BF16),
        ]
        try:
            found = alternate({candidate.name: candidate for candidate in candidates}, repeats=turns)
        finally:
            for candidate in candidates:
                candidate.close()
        for name, seconds in found.items():
            times.setdefault(name, []).extend(seconds)
    best = min((key for key in times if key.startswith("peer")), key=lambda key: sorted(times[key])[len(times[key]) // 2])
    _, batch, size, _ = CASES[net]
    what = {"what": f"{net}, {size}x{size}, batch {batch}", "processes": groups, "best_peer": best}
    return {**what, **summary(times, batch, best)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--groups", type=int, default=3, help="how many processes each candidate gets, one after the other")
    given = parser.parse_args()
    for net, turns in (("resnet20-cifar", 15), ("resnet50", 4)):
        if given.only in (net, None):
            record(f"training-{net}", compare(net, given.groups, turns))
