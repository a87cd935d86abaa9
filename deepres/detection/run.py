"""Options of a detector's training: a frozen ``DetectRun``, saved in the run's folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepres.detection.recipe import DetectRecipe, detect_recipe
from deepres.errors import DeepresError
from deepres.training.options import CheckpointOptions, StepOptions
from deepres.training.run import read_saved
from deepres.training.speed import check_speed


@dataclass(frozen=True)
class DetectRun(StepOptions, CheckpointOptions):
    """One training run of a detector. ``DetectRun("resnet18", "folder")`` is enough."""

    net: str  # the backbone: a name from `deepres nets`, timm:NAME, torchvision.models:NAME, a run or a file of weights
    data: str  # a folder of images with boxes, as Pascal VOC, COCO or YOLO
    form: Literal["fpn", "c4"] = "fpn"  # feature pyramid, or the paper's form
    # small, finetune, paper-voc, paper-coco; auto: finetune with pretrained weights, else small
    recipe: DetectRecipe | str = "auto"
    out: str | None = None  # folder for weights, checkpoints and logs; None: nothing is written
    seed: int = 0  # seed of the weights, the order of the images and all random draws
    # weights to start the backbone from: a run or a file [those in the run or file that is the backbone]
    weights: str | None = None
    width: float = 1.0  # multiplies the channels of a network of ours
    epochs: float | None = None  # passes over the training set [the recipe's]
    size: int | None = None  # short side of the resized images in pixels; the long side goes with it [the recipe's]
    flips: str | None = None  # h, v or hv: how images may be mirrored [the recipe's]
    context: bool = False  # each region also sees the features of the whole image (the paper's global context)
    classes: tuple[str, ...] = ()  # names in their order, for Pascal VOC [those of the training images]
    options: dict[str, Any] = field(default_factory=dict)  # more fields of `DetectorConfig`
    strict: bool = False  # stop at problems in annotations
    workers: int = 2  # threads that decode images

    def __post_init__(self) -> None:
        changes = {key: getattr(self, key) for key in ("epochs", "batch", "lr", "flips")}
        if isinstance(self.recipe, str):
            chosen = detect_recipe(
                "small" if self.recipe == "auto" else self.recipe, **changes
            )  # "auto" is resolved by `resolved`
        else:
            chosen = self.recipe
        if self.recipe != "auto":
            object.__setattr__(self, "recipe", chosen)
        check_speed(self.speed)
        if self.keep < 1:
            raise DeepresError(f"keep is the number of checkpoints to keep and at least 1, not {self.keep}")
        if self.size is not None and self.size < 32:
            raise DeepresError(f"size is the short side of the images and at least 32 pixels, not {self.size}")

    def resolved(self) -> DetectRun:
        """The run with the recipe that ``auto`` stands for: without pretrained weights "small", else "finetune"."""
        if self.recipe != "auto":
            return self
        from deepres.models.pretrained import PACKAGED  # the command line imports this module without torch

        saved = Path(self.net).exists() or self.net.startswith("hf:") or (self.net in PACKAGED and self.weights is None)
        pretrained = saved or self.weights not in (None, "none")
        name = "finetune" if pretrained else "small"
        changes = {key: getattr(self, key) for key in ("epochs", "batch", "lr", "flips")}
        return dataclasses.replace(self, recipe=detect_recipe(name, **changes))

    def detector_options(self) -> dict[str, Any]:
        """Fields of ``DetectorConfig``: the recipe's, changed by ``size`` and ``options``."""
        assert isinstance(self.recipe, DetectRecipe)
        found = dict(self.recipe.detector)
        if self.form == "c4":  # these are the pyramid's
            for key in ("strides", "channels", "width", "neck_norm"):
                found.pop(key, None)
        if self.size is not None:
            ratio = found.get("longest", 1333) / found.get("size", 800)
            found |= {"size": self.size, "longest": round(self.size * ratio)}
        if self.context:
            found["context"] = True
        return {**found, **self.options}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def read(cls, path: str | Path) -> DetectRun:
        """From a run's folder or its ``run.json``. Raises ``DeepresError`` where there is none."""
        return read_saved(cls, path, DetectRecipe, "the run of a detector")
