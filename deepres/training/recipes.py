"""Recipes: short functions that return a frozen ``Recipe``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from deepres.data.options import Augment
from deepres.errors import DeepresError, nearest

_Kind = TypeVar("_Kind")

Schedule = Literal["steps", "one-cycle", "cosine", "plateau"]
Optimizer = Literal["sgd", "adamw", "muon", "muon-sgd"]


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training: all options of a run that concern neither the network nor the data nor the machine."""

    name: str = "custom"
    epochs: float | None = None  # passes over the training set
    iterations: int | None = None  # steps; used where `epochs` is None
    examples: int | None = None  # examples of the whole run, in 3 to 30 epochs; used where `epochs` and `iterations` are None
    batch: int = 128  # examples per step, over all processes
    lr: float = 0.1  # the highest learning rate
    schedule: Schedule = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)  # "steps": shares of the run after which the rate is divided by 10
    warmup: float = 0.0  # share of the run over which the rate rises from 0 ("one-cycle": its rise)
    patience: int = 5  # "plateau": epochs without a better validation error before the rate is divided by 10
    gentle_depth: int = 0  # networks this deep start at a tenth of the rate until training error is under 80 %; 0: none
    optimizer: Optimizer = "sgd"  # "muon": for matrices of residual branches, AdamW for the rest; "muon-sgd": convolutions, SGD
    momentum: float = 0.9  # "adamw" and "muon": AdamW's first beta
    beta2: float = 0.999  # "adamw" and "muon": AdamW's second
    momentum_swing: float = 0.0  # "one-cycle": momentum falls from this much above to this much below while the rate rises
    nesterov: bool = False  # "sgd"
    clip: float = 0.0  # the norm that all gradients together are clipped to; 0 for off
    weight_decay: float = 1e-4
    decay_norms: bool = True  # whether weight decay also acts on norms and biases
    label_smoothing: float = 0.0
    mixup: float = 0.0  # parameter of the Beta law, 0 for off
    cutmix: float = 0.0
    ema: float = 0.0  # decay of the averaged weights per step, 0 for off
    augment: Augment = "pad-crop-flip"
    colour: bool = False  # AlexNet's colour augmentation
    pixel_mean: bool = False  # subtract the mean of each pixel, not only of each channel; for images kept in memory
    sizes: tuple[tuple[float, float], ...] = ()  # (share of the run, share of the input's side): progressive resolution
    whiten: bool = False  # the first convolution of fresh weights starts as the principal components of the images' patches
    head_first: float = 0.0  # share of the run in which only the last layer learns; for weights that are trained
    depth_rate: float = 1.0  # learning rate of the first layers as a share of the last layer's, those between geometrically
    frozen_norms: int = 0  # below this batch, running statistics of trained weights stay and normalise; 0: never
    exits: float = 0.0  # weight of exits that learn beside the classifier, so that a ghost can leave early; 0: there are none

    def __post_init__(self) -> None:
        for what, value in (("epochs", self.epochs), ("iterations", self.iterations), ("batch", self.batch), ("lr", self.lr)):
            if value is not None and not 0 < value < math.inf:
                raise DeepresError(f"recipe {self.name!r}: {what} must be above 0 and finite, not {value}")
        if self.optimizer not in get_args(Optimizer):
            raise DeepresError(f"recipe {self.name!r}: optimizer is {' or '.join(get_args(Optimizer))}, not {self.optimizer!r}")
        if self.clip < 0:
            raise DeepresError(f"recipe {self.name!r}: clip is a norm, or 0 for off, not {self.clip}")
        if self.exits < 0:
            raise DeepresError(f"recipe {self.name!r}: exits is a weight of 0 or more, not {self.exits}")
        if self.epochs is None and self.iterations is None and self.examples is None:
            raise DeepresError(f"recipe {self.name!r}: give epochs, iterations or examples")
        if not 0 <= self.head_first < 1 or not 0 < self.depth_rate <= 1:
            raise DeepresError(f"recipe {self.name!r}: head_first is a share below 1, and depth_rate one above 0")

    def steps(self, per_epoch: int) -> int:
        """Steps of the whole run."""
        if self.epochs is None and self.iterations is None:
            steps = round((self.examples or 0) / self.batch)
            return min(max(steps, 3 * per_epoch), 30 * per_epoch)
        return max(1, round(self.epochs * per_epoch)) if self.epochs is not None else int(self.iterations or 0)

    def rate(self, done: float) -> float:
        """The learning rate when the share ``done`` of the run is behind."""
        if self.schedule == "one-cycle":
            top = max(self.warmup, 1e-9)
            if done < top:
                return self.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * done / top)) / 2)
            return self.lr * (1 + math.cos(math.pi * (done - top) / (1 - top))) / 2
        rise = min(1.0, done / self.warmup) if self.warmup and done < self.warmup else 1.0
        if self.schedule == "cosine":
            return self.lr * rise * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "plateau":
            return self.lr * rise
        return self.lr * rise * 0.1 ** sum(done >= milestone for milestone in self.milestones)

    def momentum_at(self, done: float) -> float:
        """The momentum when the share ``done`` of the run is behind: lowest where the rate is highest (Smith 2018)."""
        height = self.rate(done) / self.lr if self.schedule == "one-cycle" else 0.5
        return self.momentum + self.momentum_swing * (1 - 2 * height)

    def side(self, done: float, full: int) -> int:
        """The side of the training images, in pixels, when ``done`` of the run is behind; a multiple of 32 if ``full`` is."""
        share = next((share for until, share in self.sizes if done < until), 1.0)
        grain = 32 if full % 32 == 0 and full > 32 else 1
        return max(grain, round(full * share / grain) * grain)


def paper_cifar() -> Recipe:
    """He et al. 2015, section 4.2, exactly: 64k steps of 128, rate 0.1 divided by 10 at 32k and 48k.

    Networks of 110 layers and more start at 0.01 until the training error is below 80 %. Given epochs instead of the
    64k steps, the milestones stay at half and three quarters.
    """
    return Recipe("paper-cifar", iterations=64_000, gentle_depth=110, pixel_mean=True)


def paper_imagenet() -> Recipe:
    """He et al. 2015, section 3.4: 600k steps of 256, rate 0.1 divided by 10 when the error stops falling."""
    return Recipe("paper-imagenet", iterations=600_000, batch=256, schedule="plateau", augment="scale-crop", colour=True)


def fast_cifar() -> Recipe:
    """A few epochs: one cycle, Nesterov momentum, label smoothing, no decay of norms."""
    return Recipe(
        "fast-cifar",
        epochs=16,
        lr=0.4,
        schedule="one-cycle",
        warmup=0.25,
        nesterov=True,
        weight_decay=5e-4,
        decay_norms=False,
        label_smoothing=0.1,
        gentle_depth=110,
    )


def muon_cifar() -> Recipe:
    """``fast-cifar`` with Muon for the convolutions of residual branches (Jordan et al. 2024), for the fewest epochs.

    CIFAR-10 as JPEG, ResNet-20, 2 epochs: 23.2 ± 0.2 % test error, and 30.5 ± 0.8 % by ``fast-cifar`` (three seeds). What else was tried:
    benchmarks/ablation.py.
    """
    return replace(fast_cifar(), name="muon-cifar", optimizer="muon-sgd", lr=0.1, epochs=2)


def modern_imagenet() -> Recipe:
    """Cosine, averaged weights, mixup and CutMix, growing resolution (Wightman et al. 2021; Touvron et al. 2019)."""
    return Recipe(
        "modern-imagenet",
        epochs=100,
        batch=1024,
        lr=0.5 * 1024 / 256,
        schedule="cosine",
        warmup=0.05,
        nesterov=True,
        weight_decay=5e-5,
        decay_norms=False,
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        ema=0.9998,
        augment="random-resized-crop",
        sizes=((0.35, 128 / 224), (0.7, 160 / 224), (1.0, 192 / 224)),
    )


def finetune() -> Recipe:
    """From trained weights to another task: ``init``, or the network's pretrained ones.

    The last layer first, then all, at rates that fall towards the first layers (Howard & Ruder 2018, sections 3.2 and 3.3); batch norm's
    statistics stay where a batch is too small to estimate them.
    """
    return Recipe(
        "finetune",
        examples=20_000,
        head_first=0.15,
        depth_rate=0.1,
        frozen_norms=32,
        batch=64,
        lr=0.01,
        schedule="cosine",
        warmup=0.1,
        nesterov=True,
        decay_norms=False,
        label_smoothing=0.1,
        augment="random-resized-crop",
    )


def transformer_recipe() -> Recipe:
    """For networks of attention, on images or text: AdamW, warm-up and cosine, clipped gradients (Touvron et al. 2021)."""
    return Recipe(
        "transformer",
        epochs=20,
        batch=64,
        lr=1e-3,
        schedule="cosine",
        warmup=0.1,
        optimizer="adamw",
        clip=1.0,
        weight_decay=0.05,
        decay_norms=False,
    )


def language() -> Recipe:
    """For language models: AdamW with a short second beta, warm-up, cosine, decay of 0.1 (Brown et al. 2020, appendix B)."""
    return replace(transformer_recipe(), name="language", warmup=0.05, beta2=0.99, weight_decay=0.1)


def language_muon() -> Recipe:
    """``language`` with Muon for the matrices of the residual branches."""
    return replace(language(), name="language-muon", optimizer="muon", lr=4e-3)


def digits() -> Recipe:
    """The demonstration's: 10 epochs of one cycle to 0.05, nothing else, so that what is seen comes from the network."""
    return Recipe("digits", epochs=10, lr=0.05, schedule="one-cycle", warmup=0.3, momentum_swing=0.05, augment="none")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "paper-cifar": paper_cifar,
    "paper-imagenet": paper_imagenet,
    "fast-cifar": fast_cifar,
    "muon-cifar": muon_cifar,
    "modern-imagenet": modern_imagenet,
    "finetune": finetune,
    "transformer": transformer_recipe,
    "language": language,
    "language-muon": language_muon,
    "digits": digits,
}


def recipe_in(recipes: Mapping[str, Callable[[], _Kind]], name: str) -> _Kind:
    """The recipe of a table by its name. Raises ``DeepresError`` for a name that is not in the table."""
    if name not in recipes:
        hint = nearest(name, recipes) or f"; there are {', '.join(recipes)}"
        raise DeepresError(f"unknown recipe {name!r}{hint}")
    return recipes[name]()


def recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with fields changed: ``recipe("paper-cifar", epochs=20)``."""
    return replace(recipe_in(RECIPES, name), **{key: value for key, value in changes.items() if value is not None})
