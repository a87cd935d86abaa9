"""The degradation problem (He et al. 2015, Fig. 1, 4 and 6): deeper plain networks train worse, residual ones do not."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.callback import Callback
from deepres.data import Data, Loader, open_data
from deepres.deprecation import renamed
from deepres.errors import DeepresError
from deepres.lens import LayerGradient, gradient_norms
from deepres.nn import config
from deepres.paper.experiment import MARGIN, VANISHED, evenness
from deepres.paper.lab import trained_on
from deepres.paper.options import DegradeOptions
from deepres.training import RECIPES, Record, Run, Trainer, read_log, train

REMAINING_RISE = 0.1  # rise of the residual networks, as a share of the plain ones', up to which the problem counts as solved


@dataclass(frozen=True)
class Curve:
    """One network trained from one seed."""

    net: str
    depth: int
    residual: bool
    seed: int
    history: tuple[Record, ...]
    gradients: tuple[tuple[int, tuple[LayerGradient, ...]], ...]  # (epoch, gradients of the layers)

    @property
    def train_error(self) -> float:
        """Training error of the last epoch, %."""
        return self.history[-1].train_error

    @property
    def test_error(self) -> float:
        """Test error after the last epoch, %."""
        return self.history[-1].test_error or 0.0

    @property
    def weakest(self) -> float:
        """Smallest gradient norm of a convolution relative to the largest, after the last epoch; 0 if all are zero."""
        return evenness([layer.norm for layer in self.gradients[-1][1][:-1]])


@dataclass(frozen=True)
class Findings:
    """The curves of all networks, and the conclusions from them."""

    data: str
    epochs: float
    curves: tuple[Curve, ...]
    seconds: float

    def of(self, net: str) -> list[Curve]:
        """The curves of one network, one for each seed."""
        return [curve for curve in self.curves if curve.net == net]

    @property
    def nets(self) -> list[str]:
        """Names of the networks, in the order of training."""
        return list(dict.fromkeys(curve.net for curve in self.curves))

    def train_error(self, net: str) -> tuple[float, float]:
        """Mean and standard deviation of the training error over the seeds, %; the deviation is 0 for one seed."""
        return _mean_and_deviation([curve.train_error for curve in self.of(net)])

    def test_error(self, net: str) -> tuple[float, float]:
        """As ``train_error``, of the test error."""
        return _mean_and_deviation([curve.test_error for curve in self.of(net)])

    def summary(self) -> list[str]:
        """Describe the findings in sentences, with their figures, also where they do not support the paper's claim."""
        lines = []
        depths = sorted({curve.depth for curve in self.curves})
        shallow, deep = depths[0], depths[-1]
        for kind in ("plain", "resnet"):
            low, high = (self.train_error(f"{kind}{depth}-cifar")[0] for depth in (shallow, deep))
            name = "residual" if kind == "resnet" else "plain"
            both = f"{high:.1f} % training error against {low:.1f} %"
            if high > low + MARGIN:
                lines.append(f"{name}-{deep} trains worse than {name}-{shallow}: {both} after {self.epochs:g} epochs.")
            elif high < low - MARGIN:
                lines.append(f"{name}-{deep} trains better than {name}-{shallow}: {both} after {self.epochs:g} epochs.")
            else:
                lines.append(f"{name}-{deep} trains as well as {name}-{shallow}: {both}, within {MARGIN:g} point.")
        weakest = min(curve.weakest for curve in self.of(f"plain{deep}-cifar"))
        state = "have vanished" if weakest < VANISHED else "have not vanished"
        lines.append(
            f"The gradients of plain-{deep} {state}: the smallest gradient norm of a convolution is "
            f"{weakest:.2g} of the largest (below {VANISHED:g} counts as vanished)."
        )
        if self.degraded:
            left = max(0.0, self.rise("resnet")) / self.rise("plain")
            removed = (
                "removed this rise of the error"
                if left < 0.01
                else f"removed {100 * (1 - left):.0f} % of this rise of the error"
            )
            lines.append(
                "This is the degradation problem: depth alone made the plain network worse on its own training images, so it is not "
                f"overfitting, and the shortcuts {removed}."
            )
        else:
            lines.append("The degradation problem did not show at this scale; try more depth (--depths 20 110) or --epochs.")
        seeds = len(self.of(self.nets[0]))
        lines.append(f"Measured with {seeds} seeds." if seeds > 1 else "Measured with one seed; --seeds 3 shows the spread.")
        return lines

    def rise(self, kind: str) -> float:
        """Rise of the training error from the shallowest to the deepest network of ``kind``, "plain" or "resnet", in points."""
        depths = sorted({curve.depth for curve in self.curves})
        return self.train_error(f"{kind}{depths[-1]}-cifar")[0] - self.train_error(f"{kind}{depths[0]}-cifar")[0]

    @property
    def degraded(self) -> bool:
        """Return whether the deepest plain network trained worse than the shallowest, and the residual ones at most a tenth as much."""
        return self.rise("plain") > MARGIN and self.rise("resnet") <= max(MARGIN, REMAINING_RISE * self.rise("plain"))

    def to_json(self) -> str:
        """All findings as JSON, with the version of PyTorch."""
        return json.dumps({"torch": torch.__version__, "summary": self.summary(), **dataclasses.asdict(self)}, indent=1)


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


EpochProgress = Callable[[str, int, Record], None]  # (network, seed, figures of an epoch)


@renamed(watch="progress")
def degrade(
    data: str | Path | Data = "digits",
    *,
    depths: tuple[int, ...] = DegradeOptions.depths,
    epochs: float = DegradeOptions.epochs,
    seeds: int = DegradeOptions.seeds,
    out: str | Path | None = None,
    speed: str = DegradeOptions.speed,
    size: int | None = DegradeOptions.size,
    progress: EpochProgress | None = None,
) -> Findings:
    """Train plain and residual networks of ``depths`` with the same recipe: batch 128, one cycle to 0.05, He initialisation.

    Images larger than 96 pixels are resized to 32, the side that these networks are made for. ``out``: folder to keep the runs in;
    runs that are finished there are not trained again. ``progress(net, seed, record)`` is called after each epoch.

    Raises ``DeepresError`` for fewer than two different depths, a depth without a network, fewer than one seed, and a folder whose
    runs have other settings.
    """
    if len(set(depths)) < 2:
        raise DeepresError(f"degrade compares at least two different depths, not {', '.join(map(str, depths))}")
    if seeds < 1:
        raise DeepresError(f"seeds is the number of trainings of each network and at least 1, not {seeds}")
    names = [f"{kind}{depth}-cifar" for depth in sorted(set(depths)) for kind in ("plain", "resnet")]
    for name in names:
        config(name)  # raises for a wrong depth before anything is trained
    opened = data if isinstance(data, Data) else open_data(data, size=size)
    if not isinstance(data, Data) and size is None and opened.prepare.size > 96:
        opened = open_data(data, size=32)
    base = dataclasses.replace(RECIPES["digits"](), name="degrade", epochs=epochs)
    if opened.name != "digits":
        base = dataclasses.replace(base, augment="pad-crop-flip")
    began = time.perf_counter()
    curves = []
    for seed in range(seeds):
        for name in names:
            folder = Path(out) / "runs" / f"{name}-seed{seed}" if out else None
            run = Run(name, opened.name, base, str(folder) if folder else None, seed, speed=speed, watch_test=True, keep=1)
            curves.append(_curve(run, opened, folder, progress))
    return Findings(opened.name, epochs, tuple(curves), time.perf_counter() - began)


def _curve(run: Run, data: Data, folder: Path | None, progress: EpochProgress | None) -> Curve:
    assert not isinstance(run.recipe, str)
    kept = _Gradients(data, folder, (1, math.ceil(run.recipe.epochs or 1)), progress)
    net = config(run.net)
    if folder is not None and (folder / "result.json").exists():
        history = [Record(**line) for line in read_log(folder)]
        if run.recipe != Run.read(folder).recipe or not trained_on(data, folder):
            raise DeepresError(f"{folder}: trained with other settings or on other data; choose another --out")
        for record in history if progress is not None else ():
            progress(run.net, run.seed, record)  # type: ignore[misc]
    else:
        history = train(run, resume=True, show=False, data=data, callbacks=[kept]).history
    return Curve(run.net, net.depth, not net.is_plain, run.seed, tuple(history), kept.all())


class _Gradients(Callback):
    """Measures gradient norms after ``epochs`` on one fixed batch of training images, and keeps them in ``folder`` if it is given."""

    def __init__(self, data: Data, folder: Path | None, epochs: tuple[int, ...], progress: EpochProgress | None) -> None:
        self.epochs, self.progress = epochs, progress
        loader = Loader(data.train, data.prepare, 128, seed=0, shuffle=True)
        self.batch = next(loader.epoch(0))
        self.path = folder / "gradients.jsonl" if folder else None
        self.seen: dict[int, list[dict[str, Any]]] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                self.seen[entry["epoch"]] = entry["layers"]

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        if record.epoch in self.epochs:
            self.add(trainer.model, record)
        if self.progress is not None:
            self.progress(trainer.run.net, trainer.run.seed, record)

    def add(self, model: nn.Module, record: Record) -> None:
        device = next(model.parameters()).device
        layers = gradient_norms(model, self.batch.images.to(device), self.batch.labels.to(device))
        self.seen[record.epoch] = [dataclasses.asdict(layer) for layer in layers]
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps({"epoch": record.epoch, "layers": self.seen[record.epoch]}) + "\n")

    def all(self) -> tuple[tuple[int, tuple[LayerGradient, ...]], ...]:
        return tuple((epoch, tuple(LayerGradient(**v) for v in layers)) for epoch, layers in sorted(self.seen.items()))
