"""Inverse Curriculum Training beside what else gives a shallower network: same data, epochs, seeds and number of blocks.

    python -m benchmarks.shrink --data ../shared/data/cifar10-jpeg                      # trains what is missing, then records
    python -m benchmarks.shrink --data ... --threads 1 &  (twice)                       # two processes share the training

Every way has the same total of epochs. Those that train in one go follow one one-cycle; those that start from a trained network
spend half of the epochs on training it (one network, shared by them all) and half on what they do to it, with the whole
network's answers to learn from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.common import DEVICE, SPEED, record, result_name
from deepres.data import Data, Resident, Split, open_data, seeded
from deepres.evaluation import measure
from deepres.nn import ResNet, config, parameters
from deepres.shrinking import InverseCurriculum, ShrinkSchedule, Target, time_ratio
from deepres.shrinking.api import shrink_recipe
from deepres.training import Run, recipe, train

WATCHED = 1000  # validation images that are looked at after every epoch; the rest would take a quarter of the time


@dataclass(frozen=True)
class Way:
    name: str  # of its files
    go: Callable[[int], dict[str, object]]  # seed -> what came of it


@dataclass
class Bench:
    net: str
    data: Data
    epochs: float
    out: Path
    lr: float
    fine_lr: float
    batch: int

    def recipe(self, epochs: float):  # type: ignore[no-untyped-def]
        return recipe("fast-cifar", lr=self.lr, epochs=epochs, batch=self.batch, gentle_depth=0)

    def fresh(self, seed: int, blocks: tuple[int, ...] | None = None) -> ResNet:
        torch.manual_seed(seed)
        shape = {"in_channels": self.data.prepare.channels, "num_classes": len(self.data.classes)}
        base = config(self.net, **shape)
        return ResNet(dataclasses.replace(base, blocks=blocks or base.blocks))

    def path(self, name: str, seed: int) -> Path:
        return self.out / f"{name}-seed{seed}.json"

    def train(
        self, name: str, seed: int, model: nn.Module, how: Any, curriculum: InverseCurriculum | None = None
    ) -> dict[str, object]:
        """Train, or take what was trained before."""
        path = self.path(name, seed)
        if path.exists():
            return dict(json.loads(path.read_text()))
        run = Run(self.net, self.data.name, how, None, seed, speed=SPEED, memory="all")
        data = self.data
        began = time.perf_counter()
        result = train(run, data=watched(data, WATCHED), model=model, callbacks=[curriculum] if curriculum else [], show=False)
        seconds = time.perf_counter() - began
        last = result.model  # of the epoch with the lowest validation error, by every way alike
        assert isinstance(last, ResNet)
        found = {
            "name": name,
            "seed": seed,
            "blocks": list(last.config.blocks),
            "params": parameters(last),
            "train_error": result.history[-1].train_error,
            "val_error": measure(last, data.val, data.prepare, data.classes).top1,
            "test_error": result.test.top1,
            "seconds": seconds,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        torch.save(last.state_dict(), path.with_suffix(".pt"))
        path.write_text(json.dumps(found))
        return found

    def trained(self, seed: int) -> ResNet:
        """The whole network after half of the epochs, for the ways that start from one."""
        self.train("half", seed, self.fresh(seed), self.recipe(self.epochs / 2))
        model = self.fresh(seed)
        model.load_state_dict(torch.load(self.path("half", seed).with_suffix(".pt"), weights_only=True))
        return model

    def ways(self, blocks: int) -> dict[str, Way]:
        """Each way to a network of ``blocks`` blocks."""
        goal = Target("blocks", blocks)
        third = blocks // 3
        scratch, fine = (
            self.recipe(self.epochs),
            dataclasses.replace(shrink_recipe(self.fresh(0)), epochs=self.epochs / 2, batch=self.batch, lr=self.fine_lr),
        )
        pressed, mending = (ShrinkSchedule.usual(goal, trained=trained) for trained in (False, True))

        def shape(seed: int) -> ResNet:
            """The control of Liu et al. 2019: is it the shape that was found, or the way to it?"""
            found = json.loads(self.path(f"inverse-{blocks}", seed).read_text())["blocks"]
            return self.fresh(seed, tuple(found))

        def go(name: str, how, model: Callable[[int], ResNet], curriculum: Callable[[], InverseCurriculum | None]):  # type: ignore[no-untyped-def]
            name = f"{name}-{blocks}"
            return Way(name, lambda seed: self.train(name, seed, model(seed), how, curriculum()))

        return {
            "inverse, from scratch": go("inverse", scratch, self.fresh, lambda: InverseCurriculum(pressed)),
            "inverse, from trained": go("inverse-trained", fine, self.trained, lambda: InverseCurriculum(mending)),
            "shallow from scratch": go("shallow", scratch, lambda s: self.fresh(s, (third, third, third)), lambda: None),
            "the shape it found, from scratch": go("shape", scratch, shape, lambda: None),
            "smallest responses, fine-tuned": go(
                "responses", fine, self.trained, lambda: rivals.Responses(rivals.at_once(goal))
            ),
            "lesion scores, fine-tuned": go("lesions", fine, self.trained, lambda: rivals.Lesions(rivals.at_once(goal))),
            "threshold": go("threshold", scratch, self.fresh, lambda: rivals.Threshold(pressed)),
            "norm scale": go("norm-scale", scratch, self.fresh, lambda: rivals.NormScale(ShrinkSchedule(goal, 0.35, 0.5))),
        }

    def whole(self, seed: int) -> dict[str, object]:
        return self.train("whole", seed, self.fresh(seed), self.recipe(self.epochs))

    def model(self, name: str, seed: int) -> ResNet:
        path = self.path(name, seed)
        model = self.fresh(0, tuple(json.loads(path.read_text())["blocks"]))
        model.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
        return model.to(DEVICE).eval()


def subset(data: Data, images: int) -> Data:
    """Some of the training images, always the same ones."""
    assert isinstance(data.train, Resident)
    index = torch.randperm(len(data.train), generator=seeded(0))[:images].sort().values
    return dataclasses.replace(data, train=data.train.take(index))


def thinned(split: Split, every: int) -> Tensor:
    """The rows of each ``every``-th example."""
    return torch.arange(0, len(split), every)


def watched(data: Data, most: int) -> Data:
    """With no more than ``most`` of its validation examples, to be looked at after every epoch."""
    return dataclasses.replace(data, val=data.val.take(thinned(data.val, -(-len(data.val) // most))))


def what(net: str, data: Data, epochs: float) -> str:
    """In summary, for a result's title."""
    side = data.prepare.size
    examples = f"pieces of {side} characters" if data.is_text else f"images at {side}x{side}"
    return f"{net}, {len(data.train):,} {examples}, {epochs:g} epochs"


def common_options(about: str | None) -> argparse.ArgumentParser:
    """Those that say which networks are meant, for all that trains or uses them."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--net", default="resnet56-cifar")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--val", type=float, default=0.2, help="share of the training images that is kept for validation")
    parser.add_argument("--epochs", type=float, default=24.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--fine-lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("runs/shrink-record"), help="where the networks are")
    return parser


def bench_of(options: argparse.Namespace) -> Bench:
    data = subset(open_data(options.data, size=options.size, val_share=options.val), options.images)
    return Bench(options.net, data, options.epochs, options.out, options.lr, options.fine_lr, options.batch)


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[15, 9])
    parser.add_argument("--ways", nargs="+", help="beginnings of the names of those to take [all]")
    parser.add_argument("--threads", type=int, help="of this process, where several run at once")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = bench_of(options)
    bench.out.mkdir(parents=True, exist_ok=True)
    for blocks in options.blocks:
        for seed in range(options.seeds):
            tasks = {"whole": Way("whole", bench.whole), **chosen(bench.ways(blocks), options.ways)}
            for group, names in grouped(tasks).items():
                with claimed(bench.out / f"{group}-{blocks}-seed{seed}.claim") as mine:
                    for name in names if mine else ():
                        found = tasks[name].go(seed)
                        told = f"{found['name']} {seed} {found['blocks']} {found['test_error']:.2f} {found['seconds']:.0f} s"
                        print(told, flush=True)
    if not list(bench.out.glob("*.claim")):  # the last of the processes, so that times are taken on a machine that is idle
        _record(bench, options)


def chosen(ways: dict[str, Way], starts: list[str] | None) -> dict[str, Way]:
    return {name: way for name, way in ways.items() if starts is None or name.startswith(tuple(starts))}


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """What needs another's outcome goes with it: the half-trained network, the shape that was found."""
    shared = {"inverse, from scratch": "inverse", "the shape it found, from scratch": "inverse"}
    groups: dict[str, list[str]] = {}
    for name in names:
        group = "trained" if name.endswith(("from trained", "fine-tuned")) else shared.get(name, name)
        groups.setdefault(group, []).append(name)
    return groups


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is the one to do what ``path`` stands for; others see the file while it does."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        print(f"left to another process, or to one that was killed, in which case delete it: {path}", flush=True)
        yield False
        return
    try:
        yield True
    finally:
        path.unlink()


def _record(bench: Bench, options: argparse.Namespace) -> None:
    seeds = range(options.seeds)
    inputs = torch.randn(128, *bench.data.shape, device=DEVICE)
    reference = bench.model("whole", 0)
    whole = [bench.whole(seed) for seed in seeds]
    out: dict[str, object] = {
        "what": what(options.net, bench.data, options.epochs),
        "seeds": options.seeds,
        "whole": _row(whole, [1.0] * len(whole)),
    }
    for blocks in options.blocks:
        table = {}
        for name, way in chosen(bench.ways(blocks), options.ways).items():
            if not all(bench.path(way.name, seed).exists() for seed in seeds):
                print(f"left out, since it was not trained: {name}, {blocks} blocks", flush=True)
                continue
            found = [way.go(seed) for seed in seeds]
            times = [
                time_ratio(reference, bench.model(str(one["name"]), seed), inputs)[0]
                for seed, one in zip(seeds, found, strict=True)
            ]
            table[name] = _row(found, times)
            differences = [float(a["test_error"]) - float(b["test_error"]) for a, b in zip(found, whole, strict=True)]  # type: ignore[arg-type]
            table[name]["above_whole"] = round(statistics.fmean(differences), 3)
        out[f"{blocks} blocks"] = table
    record(result_name("shrink", options.net, options.size), out)


def _row(found: list[dict[str, object]], times: list[float]) -> dict[str, object]:
    return {
        **errors_and_times([float(one["test_error"]) for one in found], times),  # type: ignore[arg-type]
        "blocks": [one["blocks"] for one in found],
        "training_seconds": round(statistics.fmean(float(one["seconds"]) for one in found)),  # type: ignore[arg-type]
    }


def errors_and_times(errors: list[float], times: list[float]) -> dict[str, object]:
    """Over the seeds."""
    return {
        "test_error": round(statistics.fmean(errors), 3),
        "spread": round(statistics.stdev(errors), 3) if len(errors) > 1 else 0.0,
        "errors": [round(e, 2) for e in errors],
        "time": round(statistics.fmean(times), 3),
        "times": [round(t, 3) for t in times],
    }


if __name__ == "__main__":
    main()
