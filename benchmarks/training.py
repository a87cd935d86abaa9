"""Training steps side by side: CIFAR ResNet-20 at batch 128, ResNet-50 at 224 and batch 16.

The peers' step is forward, backward and update; ours is ``Trainer.step``, which also seeds, checks that loss and gradient
are finite and keeps the sums that are logged.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torchvision

from benchmarks.common import alternate, record, summary
from benchmarks.peers import CifarResNet, Step
from deepres import Run
from deepres.data import Batch, Data, Prepare, Resident
from deepres.train import Trainer, recipe
from deepres.train.distribute import Team
from deepres.train.speed import SPEEDS, exactness


def trainer_on(net: str, images: torch.Tensor, labels: torch.Tensor, classes: int, speed: str) -> tuple[Trainer, Batch]:
    """A trainer of ours, and the batch that it steps on."""
    size = images.shape[-1]
    split = Resident(torch.randint(0, 256, images.shape, dtype=torch.uint8), labels)
    names = tuple(map(str, range(classes)))
    data = Data("random", names, split, split, split, Prepare(size, 3, (0.5,) * 3, (0.25,) * 3))
    run = Run(net, "random", recipe("paper-cifar", batch=len(labels)), speed=speed, memory="all")
    trainer = Trainer(run, data, Team(images.device))
    trainer.model.train()
    return trainer, next(trainer.loader.epoch(0))


def ours(net: str, images: torch.Tensor, labels: torch.Tensor, classes: int, speed: str) -> tuple[Callable[[], None], str]:
    trainer, batch = trainer_on(net, images, labels, classes, speed)
    return lambda: trainer.step(batch), trainer.speed.name


def floor(model: torch.nn.Module, images: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """The network's convolutions alone, forward and backward, as precise as the tuned peer: no norm, sum, activation, update."""
    calls: list[tuple[torch.nn.Conv2d, torch.Size]] = []
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda m, args: calls.append((m, args[0].shape))) for m in layers]  # type: ignore[func-returns-value, arg-type]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    kind = torch.bfloat16 if bf16 else torch.float32
    ready = []
    for i, (layer, shape) in enumerate(calls):
        alone = copy.deepcopy(layer).to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(shape, device=images.device, dtype=kind).to(memory_format=torch.channels_last).requires_grad_(i > 0)
        ready.append((alone, x, torch.randn_like(alone(x))))

    def run() -> None:
        for alone, x, grad in ready:
            wanted = [alone.weight] + ([x] if x.requires_grad else [])
            torch.autograd.grad(alone(x), wanted, grad)

    return run


def compare(
    net: str, build: Callable[[], torch.nn.Module], batch: int, size: int, classes: int, repeats: int
) -> dict[str, object]:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(0, classes, (batch,), device=device)
    auto, name = ours(net, images, labels, classes, "auto")
    exact, _ = ours(net, images, labels, classes, "exact")
    bf16 = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()  # elsewhere it is emulated, many times slower
    kind = " bf16" if bf16 else ""
    calls: dict[str, Callable[[], object]] = {
        "peer as it is": Step(build(), images, labels, bf16=False, last=False, compile=False),
        f"peer channels-last{kind}": Step(build(), images, labels, bf16=bf16, last=True, compile=False),
        f"peer channels-last{kind} compiled": Step(build(), images, labels, bf16=bf16, last=True, compile=True),
        f"peer{kind} compiled": Step(build(), images, labels, bf16=bf16, last=False, compile=True),
        f"deepres --speed auto ({name})": auto,
        "deepres --speed exact": exact,
        "floor: its convolutions alone": floor(build(), images, bf16),
    }
    with exactness(SPEEDS[name]):
        times = alternate(calls, repeats=repeats)
    peers = {key: values for key, values in times.items() if key.startswith("peer")}
    best = min(peers, key=lambda key: sorted(peers[key])[len(peers[key]) // 2])
    return {"what": f"{net}, {size}x{size}, batch {batch}", "best_peer": best, **summary(times, batch, best)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    record("training-resnet20-cifar", compare("resnet20-cifar", lambda: CifarResNet(20), 128, 32, 10, 2 * repeats + 1))
    record("training-resnet50", compare("resnet50", torchvision.models.resnet50, 16, 224, 1000, repeats))
