"""Training side by side, end to end: data, augmentation, forward, backward, update. CIFAR ResNet-20 and 56 at batch 128, ResNet-50 at 16.

    python -m benchmarks.training                                           # all networks and candidates, three groups each
    python -m benchmarks.training --nets resnet20-cifar --groups 1 --turns 8 --candidates floor tuned fused-compiled

Candidates are the network's convolutions alone (``floor``: no data, norm, sum, activation or update), a peer as its users run it and
tuned, and ours in each mode. Each runs in a process of its own, as it would for its users, and takes turns of several steps. Between its
turns its processes are stopped, so that none decodes ahead in another's time. A group is one set of fresh processes. Every finished
group is a row of the result, what is there is not measured again, and results of different kinds of machine are files of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.common import BF16, DEVICE, RESULTS, Remote, alternate, machine, machine_kind, summary
from benchmarks.peers import CifarResNet, Step
from deepres import Run
from deepres.data import Batch, Data, Prepare, Resident, open_data, pad_crop_flip
from deepres.training import Trainer, recipe
from deepres.training.distribute import DistributedContext
from deepres.training.heap import heap_kept
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness

BATCHES = 20  # of an epoch
KIND = "bf16" if BF16 else "float32"
OURS = {
    "eager": f"{KIND}-channels-last",
    "compiled": f"{KIND}-compiled",
    "fused": f"{KIND}-fused",
    "fused-compiled": f"{KIND}-fused-compiled",
    "auto": "auto",
}
CANDIDATES = ("floor", "peer", "tuned", *OURS)
TUNED = f"peer tuned: compiled, {KIND}, channels-last, freed memory kept"
_settings = contextlib.ExitStack()  # of this process, for as long as it lives


@dataclass(frozen=True)
class Case:
    peer: Callable[[], nn.Module]
    batch: int
    size: int
    steps: int  # of a turn: more than a loader decodes ahead
    turns: int


CASES = {
    "resnet20-cifar": Case(lambda: CifarResNet(20), 128, 32, 10, 12),
    "resnet56-cifar": Case(lambda: CifarResNet(56), 128, 32, 5, 8),
    "resnet50": Case(torchvision.models.resnet50, 16, 224, 5, 5),
}


# ---- data


def random_pixels(case: Case) -> Resident:
    """As many random images as CIFAR's trainer takes in ``BATCHES`` steps."""
    count = BATCHES * case.batch
    return Resident(torch.randint(0, 256, (count, 3, case.size, case.size), dtype=torch.uint8), torch.arange(count) % 10)


def write_photographs(folder: Path, case: Case) -> None:
    """JPEG files of 500 x 375 pixels that decode and resize as photographs do, in two classes and three splits."""
    for split, count in (("train", BATCHES * case.batch), ("val", case.batch), ("test", case.batch)):
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = torch.randint(0, 256, (47, 63, 3), dtype=torch.uint8).numpy()
            Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


class _Pictures(Dataset[tuple[Image.Image, int]]):
    """CIFAR as ``torchvision.datasets.CIFAR10`` gives it: an image from memory, transformed one by one."""

    def __init__(self, split: Resident, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels, self.labels, self.transform = split.pixels.permute(0, 2, 3, 1).numpy(), split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def loaded(case: Case, folder: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches as a peer's users load them: torchvision's transforms in as many worker processes as there are cores."""
    end = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    data: Dataset[Any]
    if case.size == 32:
        crop = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4)]
        data = _Pictures(random_pixels(case), transforms.Compose([*crop, *end]))
    else:
        crop = [transforms.RandomResizedCrop(case.size), transforms.RandomHorizontalFlip()]
        data = torchvision.datasets.ImageFolder(f"{folder}/train", transforms.Compose([*crop, *end]))
    workers = torch.get_num_threads()
    loader = DataLoader(data, case.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def augmented(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches as a tuned loop makes them of images in memory: augmented as one tensor."""
    split, prepare = random_pixels(case), Prepare(case.size, 3, (0.5,) * 3, (0.25,) * 3)
    while True:
        for index in torch.randperm(len(split)).split(case.batch):
            images = pad_crop_flip(split.pixels[index], torch.rand(len(index), 3), pad=4)
            yield prepare.normalise(images).contiguous(memory_format=torch.channels_last), split.labels[index]


# ---- candidates, each built in its own process


def trainer_on(net: str, data: Data, batch: int, speed: str) -> Trainer:
    run = Run(net, "random", recipe("paper-cifar", batch=batch), speed=speed, memory="all")
    trainer = Trainer(run, data, DistributedContext(DEVICE))
    trainer.model.train()
    return trainer


def resident_data(pixels: Tensor, labels: Tensor, classes: int) -> Data:
    split = Resident(pixels, labels)
    names = tuple(map(str, range(classes)))
    return Data("random", names, split, split, split, Prepare(pixels.shape[-1], 3, (0.5,) * 3, (0.25,) * 3))


def _batches(trainer: Trainer) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from (batch for batch in trainer.loader.epoch(epoch) if batch.full)
        epoch += 1


def ours(net: str, name: str, folder: str) -> tuple[Callable[[], None], str]:
    case, speed = CASES[net], OURS[name]
    if case.size == 32:
        split = random_pixels(case)
        data = resident_data(split.pixels, split.labels, 10)
    else:
        data = open_data(folder, size=case.size)
    trainer = trainer_on(net, data, case.batch, speed)
    _settings.enter_context(exactness(SPEEDS[trainer.speed.name]))
    _settings.enter_context(trainer.heap())
    batches = _batches(trainer)

    def turn() -> None:
        for _ in range(case.steps):
            trainer.step(next(batches))

    return turn, f"deepres --speed {speed}" + (f" ({trainer.speed.name})" if speed == "auto" else "")


def peer(net: str, tuned: bool, folder: str) -> tuple[Callable[[], None], str]:
    case = CASES[net]
    step = Step(case.peer().to(DEVICE), bf16=BF16 and tuned, last=tuned, compile=tuned)
    if tuned:
        _settings.enter_context(exactness(SPEEDS["float32"]))
        _settings.enter_context(heap_kept())
    batches = augmented(case) if tuned and case.size == 32 else loaded(case, folder)

    def turn() -> None:
        for _ in range(case.steps):
            step(*next(batches))

    return turn, TUNED if tuned else "peer as its users run it"


def floor(net: str) -> tuple[Callable[[], None], str]:
    """The convolutions of our network alone, forward and backward, in the tuned peer's precision."""
    case = CASES[net]
    model = case.peer().to(DEVICE)
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda m, args: calls.append((m, args[0].shape))) for m in layers]
    with torch.no_grad():
        model(torch.randn(case.batch, 3, case.size, case.size, device=DEVICE))
    for handle in handles:
        handle.remove()
    ready = []
    for i, (layer, shape) in enumerate(calls):
        alone = copy.deepcopy(layer).to(getattr(torch, "bfloat16" if BF16 else "float32")).to(memory_format=torch.channels_last)
        x = (
            torch.randn(shape, device=DEVICE, dtype=alone.weight.dtype)
            .to(memory_format=torch.channels_last)
            .requires_grad_(i > 0)
        )
        ready.append((alone, x, torch.randn_like(alone(x))))
    _settings.enter_context(exactness(SPEEDS["float32"]))
    _settings.enter_context(heap_kept())

    def turn() -> None:
        for _ in range(case.steps):
            for alone, x, grad in ready:
                wanted = [alone.weight] + ([x] if x.requires_grad else [])
                torch.autograd.grad(alone(x), wanted, grad)

    return turn, "floor: its convolutions alone"


def candidate(net: str, name: str, folder: str) -> Remote:
    if name in OURS:
        return Remote(ours, net, name, folder, paused=True)
    return Remote(floor, net, paused=True) if name == "floor" else Remote(peer, net, name == "tuned", folder, paused=True)


# ---- groups


def measure_group(net: str, names: list[str], turns: int, folder: str) -> dict[str, list[float]]:
    """Seconds of each turn of each candidate, in fresh processes."""
    candidates: list[Remote] = []
    try:
        for name in names:
            candidates.append(candidate(net, name, folder))
        return alternate({one.name: one for one in candidates}, repeats=turns, warm=1)
    finally:
        for one in candidates:
            one.close()


def write(path: Path, net: str, rows: list[dict[str, Any]]) -> None:
    """All groups with the candidates that every one of them has: rates, ratios to the tuned peer, and shares of the floor."""
    case = CASES[net]
    names = [name for name in rows[0]["seconds"] if all(name in row["seconds"] for row in rows)]
    times = {name: [seconds for row in rows for seconds in row["seconds"][name]] for name in names}
    images = case.batch * case.steps
    what = f"{net}, {case.size}x{case.size}, batch {case.batch}, end to end with data and augmentation; turns of {case.steps} steps"
    result = {
        "name": path.stem,
        "date": time.strftime("%Y-%m-%d"),
        "machine": rows[-1]["machine"],
        "what": what,
        "processes": len(rows),
    }
    against = TUNED if TUNED in times else names[0]
    result |= summary(times, images, against)
    floors = [name for name in names if name.startswith("floor")]
    if floors:
        shares = summary(times, images, floors[0])
        for name, one in shares.items():
            result[name] |= {f"of_the_floor{key}": one[f"ratio{key}"] for key in ("", "_lowest", "_highest")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--groups", type=int, default=3, help="how many processes each candidate gets, one after the other")
    parser.add_argument("--turns", type=int, help="of each group [12 for ResNet-20, 8 for ResNet-56, 5 for ResNet-50]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    for net in options.nets:
        case = CASES[net]
        path = options.out / f"training-{net}-{machine_kind()}.json"
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
        with tempfile.TemporaryDirectory() as folder:
            if case.size != 32:
                write_photographs(Path(folder), case)
            for group in range(len(rows), options.groups):
                began = time.perf_counter()
                seconds = measure_group(net, options.candidates, options.turns or case.turns, folder)
                rounded = {name: [round(one, 4) for one in some] for name, some in seconds.items()}
                rows.append({"group": group, "machine": machine(), "seconds": rounded})
                write(path, net, rows)
                found = json.loads(path.read_text())
                print(f"{net}, group {group + 1}, {time.perf_counter() - began:.0f} s", flush=True)
                for name in rounded:
                    one = found[name]
                    share = f", of the floor {one['of_the_floor']}" if "of_the_floor" in one else ""
                    print(f"  {name}: {one['images_per_second']} images/s, ratio {one['ratio']}{share}", flush=True)


if __name__ == "__main__":
    main()
