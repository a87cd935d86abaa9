"""Recipes for detectors: what is done to the images, the schedule, and the detector's size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deepres.errors import DeepresError
from deepres.training.recipes import recipe_in

DetectOptimizer = Literal["sgd", "adamw"]
Decline = Literal["step", "cosine"]


@dataclass(frozen=True)
class DetectRecipe:
    """Recipe of a detector's training. Lengths are in pixels of the resized image."""

    name: str
    epochs: float | None = None  # passes over the training images
    iterations: int | None = None  # or the number of steps
    batch: int = 8  # images of a step, over all processes
    lr: float = 0.02  # highest learning rate
    pretrained_rate: float = 1.0  # learning rate of pretrained weights whose norms are frozen, as a share of that of all others
    decline: Decline = "cosine"  # "step": a tenth at each milestone
    warmup: float = 0.02  # share of the run in which the rate rises
    milestones: tuple[float, ...] = (0.75,)  # shares of the run
    optimizer: DetectOptimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4  # of the weights of convolutions and linear layers; norms and biases have none
    clip: float = 10.0  # the norm that all gradients together are clipped to; 0 for off
    ema: float = 0.0  # decay of the averaged weights per step, 0 for off
    flips: str = "h"  # mirror half of the images: "h" left to right, "v" top to bottom, "hv" both, "" for off
    zoom: tuple[float, float] = (
        1.0,
        1.0,
    )  # images are scaled by a factor from this range and cut or padded (Ghiasi et al. 2021)
    colour: float = 0.0  # strength of changes of brightness, contrast and saturation
    detector: dict[str, Any] = field(default_factory=dict)  # fields of `DetectorConfig`

    def __post_init__(self) -> None:
        for what in ("epochs", "iterations", "batch", "lr", "pretrained_rate"):
            value = getattr(self, what)
            if value is not None and value <= 0:
                raise DeepresError(f"recipe {self.name!r}: {what} must be above 0, not {value}")
        if (self.epochs is None) == (self.iterations is None):
            raise DeepresError(f"recipe {self.name!r}: give either epochs or iterations")
        if self.flips not in ("", "h", "v", "hv"):
            raise DeepresError(f"recipe {self.name!r}: flips is 'h', 'v', 'hv' or empty, not {self.flips!r}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise DeepresError(f"recipe {self.name!r}: zoom is a range of factors above 0, not {self.zoom}")
        for what, kinds in (("optimizer", DetectOptimizer), ("decline", Decline)):
            if getattr(self, what) not in get_args(kinds):
                raise DeepresError(
                    f"recipe {self.name!r}: {what} is {' or '.join(get_args(kinds))}, not {getattr(self, what)!r}"
                )

    def steps(self, per_epoch: int) -> int:
        """Steps of the whole run."""
        return max(1, round(self.epochs * per_epoch)) if self.epochs is not None else int(self.iterations or 0)

    def rate(self, done: float) -> float:
        """The learning rate when the share ``done`` of the run is behind."""
        rise = min(1.0, (done + 1e-4) / self.warmup) if self.warmup else 1.0
        if self.decline == "cosine":
            return self.lr * rise * (1 + math.cos(math.pi * done)) / 2
        return self.lr * rise * 0.1 ** sum(done >= milestone for milestone in self.milestones)


def paper_voc() -> DetectRecipe:
    """He et al. 2015, appendix A, with the hyper-parameters of Ren et al. 2015: one image a step, 600 pixels, 60k steps at 0.001 and 20k
    at 0.0001. Proposals and regions are trained together, in one network.
    """
    return DetectRecipe(
        "paper-voc",
        iterations=80_000,
        batch=1,
        lr=0.001,
        decline="step",
        warmup=0.0,
        weight_decay=5e-4,
        clip=0.0,
        detector={"size": 600, "longest": 1000, "samples": 128, "proposals": (2000, 300), "anchors": (128.0, 256.0, 512.0)},
    )


def paper_coco() -> DetectRecipe:
    """He et al. 2015, appendix A: 8 images a step, 240k steps at 0.001 and 80k at 0.0001, regions of 64 pixels proposed as well."""
    coco = paper_voc()
    anchors = (64.0, 128.0, 256.0, 512.0)
    return dataclasses.replace(
        coco, name="paper-coco", iterations=320_000, batch=8, weight_decay=1e-4, detector={**coco.detector, "anchors": anchors}
    )


def fine_tune() -> DetectRecipe:
    """From pretrained weights to boxes of your own: few epochs at the usual size."""
    return DetectRecipe(
        "finetune", epochs=20, batch=8, lr=0.01, ema=0.999, zoom=(0.8, 1.25), detector={"size": 640, "longest": 1024}
    )


def small() -> DetectRecipe:
    """Some hundreds of images without pretrained weights, on a CPU: 320 pixels, narrow pyramid and head, few regions, strong zooms."""
    return DetectRecipe(
        "small",
        epochs=80,
        batch=4,
        lr=1e-3,
        pretrained_rate=0.1,  # at the whole rate, with frozen norms, the signals of EfficientNet-Lite0 grow until no box is found
        warmup=0.05,
        optimizer="adamw",
        weight_decay=0.05,
        ema=0.995,
        zoom=(0.6, 1.4),
        colour=0.2,
        detector={
            "size": 240,
            "longest": 320,
            "strides": (8, 16, 32),
            "channels": 128,
            "width": 512,
            "samples": 128,
            "proposals": (500, 200),
            "octaves": 2,
            "neck_norm": True,
            "antialias": True,
        },
    )


DETECT_RECIPES: dict[str, Callable[[], DetectRecipe]] = {
    "paper-voc": paper_voc,
    "paper-coco": paper_coco,
    "finetune": fine_tune,
    "small": small,
}


def detect_recipe(name: str, **changes: Any) -> DetectRecipe:
    """A recipe by name, with fields changed: ``detect_recipe("small", epochs=20)``."""
    asked = {key: value for key, value in changes.items() if value is not None}
    if "epochs" in asked:
        asked["iterations"] = None
    return dataclasses.replace(recipe_in(DETECT_RECIPES, name), **asked)
