"""The basis of all experiments: scales, trained networks that are kept and shared, and outcomes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
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
from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError, nearest
from deepres.evaluation import evaluate, measure
from deepres.evaluation.options import SHORT_SIDES, Protocol
from deepres.models import load, notes
from deepres.nn import ResNet, config
from deepres.paper.options import ScaleOptions
from deepres.training import Interrupted, Recipe, Record, Run, Trainer, read_log, recipe, train
from deepres.training.distribute import pick_device
from deepres.training.trainer import LAST

NetworkFamily = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class ExperimentScale:
    """Data, depths, recipe and number of seeds of experiments. The code of an experiment is the same at every scale."""

    name: str
    data: str
    depths: tuple[int, ...]  # of the compared networks, shallow to deep
    table: tuple[int, ...]  # depths of the residual networks of Table 6, or of the bottleneck networks of Tables 3 to 5
    recipe: Recipe
    seeds: int
    differs: str  # differences from the paper, in words
    deepest: tuple[int, int] = (110, 1202)  # depths of a deep network and of one that is too deep for its data
    kind: NetworkFamily = "cifar"
    size: int = 32  # side of the input in pixels; for CIFAR networks smaller images keep their size
    width: float = 1.0
    scales: tuple[int, ...] = SHORT_SIDES  # short sides for testing at several scales, pixels
    beside: ExperimentScale | None = None  # the scale for the other family of networks
    layers: tuple[int, int, int] = (2, 12, 48)  # of Transformers, shallow to deep

    def changed(
        self,
        *,
        data: str | None = ScaleOptions.data,
        epochs: float | None = ScaleOptions.epochs,
        seeds: int | None = ScaleOptions.seeds,
    ) -> ExperimentScale:
        """Copy with other data, epochs or seeds. Raises ``DeepresError`` for epochs or seeds that are not above 0."""
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

    def serving(self, kind: NetworkFamily) -> ExperimentScale | None:
        """The scale for a family of networks; None if there is none."""
        return self if self.kind == kind else self.beside


_QUICK_PHOTOGRAPHS = ExperimentScale(
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

EXPERIMENT_SCALES = {
    scale.name: scale
    for scale in (
        ExperimentScale(
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
        ExperimentScale(
            "cifar",
            "cifar10",
            (20, 56),
            (20, 32, 44, 56, 110, 1202),
            recipe("paper-cifar"),
            5,
            "nothing but the machine",
        ),
        ExperimentScale(
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


def scale(name: str) -> ExperimentScale:
    """The scale of that name. Raises ``DeepresError`` for an unknown name."""
    if name not in EXPERIMENT_SCALES:
        hint = nearest(name, EXPERIMENT_SCALES) or f"; there are {', '.join(EXPERIMENT_SCALES)}"
        raise DeepresError(f"unknown scale {name!r}{hint}")
    return EXPERIMENT_SCALES[name]


@dataclass(frozen=True)
class Row:
    """One row of an outcome: our figure and the paper's."""

    label: str
    ours: tuple[float, ...]  # one value for each seed
    unit: str = "%"
    paper: float | str | None = None  # as published; None where the paper has none

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.ours)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.ours) if len(self.ours) > 1 else 0.0

    def text(self) -> str:
        """Mean and standard deviation with the unit, as in ``"7.25 ± 0.13 %"``."""
        figure = f"{self.mean:.3g}" if 0 < abs(self.mean) < 0.01 or abs(self.mean) >= 1000 else f"{self.mean:.2f}"
        return f"{figure} ± {self.spread:.2g} {self.unit}".strip() if len(self.ours) > 1 else f"{figure} {self.unit}".strip()


@dataclass(frozen=True)
class Curves:
    """A figure as data: named lines of x and y, which the page draws."""

    caption: str
    x: str
    y: str
    lines: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    log: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of an experiment."""

    name: str
    title: str
    source: str  # paper and section
    claim: str
    holds: bool
    why: str  # the figures that decide whether the claim holds, and the likely reason if it does not
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
    test_error: float  # of the weights with the best validation error, %
    folder: Path

    @property
    def train_error(self) -> float:
        """Error in the last epoch of training, %."""
        return self.history[-1].train_error


class _Report(Callback):
    """Passes each epoch on to ``progress``, with the name of the network."""

    def __init__(self, progress: Callable[[str, Record], None], name: str) -> None:
        self.progress, self.label = progress, name

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.progress(self.label, record)


@renamed_fields(watch="progress")
@dataclass
class Lab:
    """Trains networks for experiments. Each is trained once, kept in ``out`` and shared between experiments."""

    scale: ExperimentScale
    out: Path
    speed: str = "float32-channels-last"
    progress: Callable[[str, Record], None] | None = None  # called after each epoch with the network's name
    ends: float = math.inf  # by `time.perf_counter`, the time after which no further training begins
    _data: Data | None = field(default=None, repr=False)
    _beside: Lab | None = field(default=None, repr=False)

    @property
    def data(self) -> Data:
        """The scale's data, opened when first used."""
        if self._data is None:
            scale = self.scale
            if scale.data == "imagenet":
                raise DeepresError(
                    "the scale 'imagenet' needs --data FOLDER with train and val: a folder for each class, or tar shards"
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

    def at(self, kind: NetworkFamily) -> Lab:
        """The lab for a family of networks: this one, or one for the scale beside it.

        Raises ``DeepresError`` if the scale has no such networks.
        """
        serving = self.scale.serving(kind)
        if serving is None:
            fit = [one.name for one in EXPERIMENT_SCALES.values() if one.serving(kind)]
            raise DeepresError(f"this experiment cannot run at the scale {self.scale.name!r}; it runs at {' and '.join(fit)}")
        if serving is not self.scale and self._beside is None:
            self._beside = Lab(serving, self.out / kind, self.speed, self.progress, self.ends)
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

    def train(self, net: str, seed: int = 0, *, width: float | None = None, label: str = "", start: nn.Module | None = None,
              changes: dict[str, Any] | None = None, **options: Any) -> Trained:  # fmt: skip
        """Train a network, or load it from ``out`` if it was trained before.

        ``label``: suffix of the run's name, which tells networks of different ``options`` apart. ``start``: network to start from
        instead of a new one. ``changes``: fields of the recipe to replace. ``options``: fields of the network's configuration.

        Raises ``Interrupted`` after Ctrl-C, and behind ``ends``; the run is kept, and the next call continues it. Raises
        ``DeepresError`` if ``out`` holds a run of this name with other settings or data.
        """
        width = self.scale.width if width is None else width
        name = f"{net}{f'-{label}' if label else ''}"
        folder = self.out / "runs" / f"{name}-seed{seed}"
        run = Run(net, self.data.name, dataclasses.replace(self.recipe, **(changes or {})), str(folder), seed, width=width,
                  speed=self.speed, options=options, keep=1)  # fmt: skip
        if (folder / "result.json").exists():
            saved = Run.read(folder)
            same = (saved.recipe, saved.options, saved.width) == (run.recipe, run.options, run.width)
            if not (same and trained_on(self.data, folder)):
                raise DeepresError(f"{folder}: trained with other settings or on other data; choose another --out")
        else:
            if time.perf_counter() > self.ends:
                raise Interrupted(f"the time that was given is over before {name}, seed {seed}, is trained")
            callbacks = [] if self.progress is None else [_Report(self.progress, f"{name}, seed {seed}")]
            train(run, resume=True, show=False, data=self.data, model=start, callbacks=callbacks)
        history = tuple(Record(**line) for line in read_log(folder))
        test = json.loads((folder / "result.json").read_text())["test"]["top1"]
        model = load(folder / LAST).to(self.device)
        return Trained(net, seed, history, model, test, folder)

    def tested(self, runs: Sequence[Trained], protocol: Protocol) -> dict[str, Any]:
        """Test the ensemble of ``runs`` (one or more) by a protocol: top-1 and top-5 error, %. Results are kept in ``out``."""
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
        """Build a new network for this data."""
        torch.manual_seed(seed)
        shape = {"in_channels": self.data.prepare.channels, "num_classes": len(self.data.classes)}
        return ResNet(config(net, **{**shape, **options}))

    def batch(self, count: int = 128) -> tuple[Tensor, Tensor]:
        """The first ``count`` training images in a fixed order, normalised, and their labels."""
        loader = Loader(self.data.train, self.data.prepare, min(count, len(self.data.train)), seed=0)
        batch = next(loader.epoch(0))
        return batch.images.to(self.device), batch.labels.to(self.device)

    def error(self, model: nn.Module, split: str = "train") -> float:
        """Error over a whole split in eval mode, %."""
        return measure(model, getattr(self.data, split), self.data.prepare, self.data.classes, device=self.device).top1


def trained_on(data: Data, folder: Path) -> bool:
    """Return whether the finished run in ``folder`` was trained on ``data``, as far as its name, classes and size of images tell."""
    noted = notes(folder / LAST)
    return (Run.read(folder).data, noted["classes"], noted["prepare"]["size"]) == (
        data.name,
        [*data.classes],
        data.prepare.size,
    )


def timed(run: Callable[[Lab], Outcome], lab: Lab) -> Outcome:
    """Run an experiment and note its seconds in the outcome."""
    began = time.perf_counter()
    outcome = run(lab)
    return dataclasses.replace(outcome, seconds=time.perf_counter() - began)


def over(values: Sequence[float]) -> str:
    """Mean and standard deviation of ``values``, as in ``"1.23 ± 0.4"``."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2g}" if len(values) > 1 else f"{mean:.2f}"
