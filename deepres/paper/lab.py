"""What every experiment stands on: a scale to run at, trained networks that are kept, and an outcome to tell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepres.callback import Callback
from deepres.data import Data, Loader, open_data
from deepres.errors import DeepresError, nearest
from deepres.evaluation import evaluate, measure
from deepres.evaluation.options import SHORT_SIDES, Protocol
from deepres.models import load
from deepres.nn import ResNet, config
from deepres.paper.options import ScaleOptions
from deepres.training import Recipe, Record, Run, Trainer, read_log, recipe, train
from deepres.training.distribute import pick_device

Kind = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run; the code is the same at every scale."""

    name: str
    data: str
    depths: tuple[int, ...]  # of the networks that are compared, shallow to deep
    table: tuple[int, ...]  # the residual networks of Table 6; of Tables 3 to 5, the bottleneck ones
    recipe: Recipe
    seeds: int
    differs: str  # from the paper, in summary
    deepest: tuple[int, int] = (110, 1202)  # a deep network, and one that is deeper than its data needs
    kind: Kind = "cifar"  # which family of networks
    size: int = 32  # side of the input, pixels; smaller images of their own size stay as they are for CIFAR networks
    width: float = 1.0
    scales: tuple[int, ...] = SHORT_SIDES  # short sides for testing at several scales, pixels
    beside: Scale | None = None  # what serves the other kind

    def changed(
        self,
        *,
        data: str | None = ScaleOptions.data,
        epochs: float | None = ScaleOptions.epochs,
        seeds: int | None = ScaleOptions.seeds,
    ) -> Scale:
        """The same with other data, epochs or seeds."""
        for what, value in (("--epochs", epochs), ("--seeds", seeds)):
            if value is not None and value <= 0:
                raise DeepresError(f"{what} must be above 0, not {value}")
        run = self.recipe if epochs is None else dataclasses.replace(self.recipe, epochs=epochs)
        beside = self.beside.changed(data=data, epochs=epochs, seeds=seeds) if self.beside else None
        asked = [f"{data} instead of {self.data}"] if data else []
        usual = f"{self.recipe.epochs:g}" if self.recipe.epochs is not None else f"{self.recipe.iterations:,} steps"
        asked += [f"{epochs:g} epochs instead of {usual}"] if epochs else []
        return dataclasses.replace(
            self,
            data=data or self.data,
            recipe=run,
            seeds=seeds or self.seeds,
            differs="; ".join([self.differs, *asked]),
            beside=beside,
        )

    def serving(self, kind: Kind) -> Scale | None:
        """The scale for that family of networks, if there is one."""
        return self if self.kind == kind else self.beside


_QUICK_PHOTOGRAPHS = Scale(
    "quick",
    "digits",
    (18, 34),
    (50,),
    recipe("digits"),
    3,
    "handwritten digits at 32x32 pixels instead of ImageNet, networks of a quarter of the width, 10 epochs of one cycle",
    kind="imagenet",
    width=0.25,
    scales=(32, 40, 48),
)

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "quick",
            "digits",
            (20, 56),
            (20, 32, 44, 56),
            recipe("digits"),
            3,
            "handwritten digits of 8x8 pixels instead of CIFAR-10, 10 epochs of one cycle instead of 64,000 steps",
            deepest=(56, 110),
            beside=_QUICK_PHOTOGRAPHS,
        ),
        Scale(
            "cifar",
            "cifar10",
            (20, 56),
            (20, 32, 44, 56, 110, 1202),
            recipe("paper-cifar"),
            5,
            "nothing but the machine",
        ),
        Scale(
            "imagenet",
            "imagenet",
            (18, 34),
            (50, 101, 152),
            recipe("paper-imagenet"),
            1,
            "nothing but the machine",
            kind="imagenet",
            size=224,
        ),
    )
}


def scale(name: str) -> Scale:
    """A scale by name."""
    if name not in SCALES:
        raise DeepresError(f"unknown scale {name!r}{nearest(name, SCALES) or f'; there are {chr(44).join(SCALES)}'}")
    return SCALES[name]


@dataclass(frozen=True)
class Row:
    """One line of an outcome: our figure beside the paper's."""

    label: str
    ours: tuple[float, ...]  # one value a seed
    unit: str = "%"
    paper: float | str | None = None  # as published; None where the paper has none

    @property
    def mean(self) -> float:
        return statistics.fmean(self.ours)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, 0 for one."""
        return statistics.stdev(self.ours) if len(self.ours) > 1 else 0.0

    def text(self) -> str:
        figure = f"{self.mean:.3g}" if 0 < abs(self.mean) < 0.01 or abs(self.mean) >= 1000 else f"{self.mean:.2f}"
        return f"{figure} ± {self.spread:.2g} {self.unit}".strip() if len(self.ours) > 1 else f"{figure} {self.unit}".strip()


@dataclass(frozen=True)
class Curves:
    """A figure as data: lines of (x, y), drawn by the page."""

    caption: str
    x: str
    y: str
    lines: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    log: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to."""

    name: str
    title: str
    source: str  # where in the paper
    claim: str
    holds: bool
    why: str  # the figures that decide it, and the likely reason where it does not hold
    rows: tuple[Row, ...]
    figures: tuple[Curves, ...]
    differs: str
    seeds: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Trained:
    """One network trained from one seed."""

    net: str
    seed: int
    history: tuple[Record, ...]
    model: ResNet
    test_error: float  # at the end, of the weights with the best validation error, %
    folder: Path

    @property
    def train_error(self) -> float:
        """Of the last epoch, while training, %."""
        return self.history[-1].train_error


Watch = Callable[[str, Record], None]


class _Shown(Callback):
    """Hands each epoch on to ``progress``, under the name of the network."""

    def __init__(self, progress: Watch, name: str) -> None:
        self.progress, self.label = progress, name

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.progress(self.label, record)


@dataclass
class Lab:
    """Trains what an experiment asks for, once: networks are kept in ``out`` and shared between experiments."""

    scale: Scale
    out: Path
    speed: str = "float32-channels-last"
    watch: Watch | None = None
    _data: Data | None = field(default=None, repr=False)
    _beside: Lab | None = field(default=None, repr=False)

    @property
    def data(self) -> Data:
        if self._data is None:
            scale = self.scale
            if scale.data == "imagenet":
                raise DeepresError(
                    "the scale 'imagenet' needs --data FOLDER: train and val with a folder per class, or tar shards"
                )
            own = scale.kind == "cifar"  # small images keep their size
            self._data = open_data(scale.data, size=None if own else scale.size)
            if own and self._data.prepare.size > 96:
                self._data = open_data(scale.data, size=scale.size)
            if scale.recipe.pixel_mean:
                self._data = self._data.centred_by_pixel()
        return self._data

    @cached_property
    def device(self) -> torch.device:
        return pick_device("auto", int(os.environ.get("LOCAL_RANK", "0")))

    def at(self, kind: Kind) -> Lab:
        """The lab for that family of networks; the same, or one beside it.

        Raises ``DeepresError`` where the scale has no such networks.
        """
        serving = self.scale.serving(kind)
        if serving is None:
            fit = [one.name for one in SCALES.values() if one.serving(kind)]
            raise DeepresError(f"this experiment is not for the scale {self.scale.name!r}; it runs at {' and '.join(fit)}")
        if serving is not self.scale and self._beside is None:
            self._beside = Lab(serving, self.out / kind, self.speed, self.watch)
        return self if serving is self.scale or self._beside is None else self._beside

    @property
    def seeds(self) -> range:
        return range(self.scale.seeds)

    @property
    def recipe(self) -> Recipe:
        run = self.scale.recipe
        if self.data.name == "digits":
            return dataclasses.replace(run, augment="none")
        return run if self.scale.kind == "imagenet" else dataclasses.replace(run, augment="pad-crop-flip")

    def train(self, net: str, seed: int = 0, *, width: float | None = None, label: str = "", start: ResNet | None = None,
              changes: dict[str, Any] | None = None, **options: Any) -> Trained:  # fmt: skip
        """Train, or take from ``out`` what was trained before. ``label`` names what the options make of the network.

        ``start``: a network to go on from, instead of a fresh one. ``changes``: to the recipe.

        Raises ``Interrupted`` after Ctrl-C; the run is kept and goes on at the next call.
        """
        width = self.scale.width if width is None else width
        name = f"{net}{f'-{label}' if label else ''}"
        folder = self.out / "runs" / f"{name}-seed{seed}"
        run = Run(net, self.data.name, dataclasses.replace(self.recipe, **(changes or {})), str(folder), seed, width=width,
                  speed=self.speed, options=options, keep=1)  # fmt: skip
        if (folder / "result.json").exists():
            saved = Run.read(folder)
            if (saved.recipe, saved.options, saved.width) != (run.recipe, run.options, run.width):
                raise DeepresError(f"{folder}: was trained with other settings; choose another --out")
        else:
            shown = [] if self.watch is None else [_Shown(self.watch, f"{name}, seed {seed}")]
            train(run, resume=True, show=False, data=self.data, model=start, callbacks=shown)
        history = tuple(Record(**line) for line in read_log(folder))
        test = json.loads((folder / "result.json").read_text())["test"]["top1"]
        model = load(folder / "last.safetensors").to(self.device)
        return Trained(net, seed, history, model, test, folder)

    def tested(self, runs: Sequence[Trained], protocol: Protocol) -> dict[str, Any]:
        """The ensemble of ``runs`` (of one or more) on the test split by a protocol; kept, as it takes long at the real scale."""
        members = ",".join(run.folder.name for run in runs)
        path = self.out / "tests" / f"{protocol}-{hashlib.sha256(members.encode()).hexdigest()[:16]}.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        found = evaluate(
            [run.model for run in runs], self.data, protocol=protocol, scales=self.scale.scales, device=self.device
        )
        result = {"members": members, "top1": found.top1, "top5": found.top5, "n": found.n}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(result))
        os.replace(part, path)
        return result

    def build(self, net: str, seed: int = 0, **options: Any) -> ResNet:
        """A fresh network for this data."""
        torch.manual_seed(seed)
        shape = {"in_channels": self.data.prepare.channels, "num_classes": len(self.data.classes)}
        return ResNet(config(net, **{**shape, **options}))

    def batch(self, count: int = 128) -> tuple[Tensor, Tensor]:
        """Always the same training images, normalised, and their labels."""
        loader = Loader(self.data.train, self.data.prepare, min(count, len(self.data.train)), seed=0)
        batch = next(loader.epoch(0))
        return batch.images.to(self.device), batch.labels.to(self.device)

    def error(self, model: nn.Module, split: str = "train") -> float:
        """In eval mode, over a whole split, %."""
        return measure(model, getattr(self.data, split), self.data.prepare, self.data.classes, device=self.device).top1


def timed(run: Callable[[Lab], Outcome], lab: Lab) -> Outcome:
    began = time.perf_counter()
    outcome = run(lab)
    return dataclasses.replace(outcome, seconds=time.perf_counter() - began)


def over(values: Sequence[float]) -> str:
    """``"1.23 ± 0.4"``."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2g}" if len(values) > 1 else f"{mean:.2f}"
