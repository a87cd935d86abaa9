"""Detections of a model in many images, and all figures of a split."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from deepres.adapters import device_of, kept_modes
from deepres.data.detection import BoxExample
from deepres.detection.batches import load_picture
from deepres.detection.coco_protocol import CocoScores, ImageDetections, coco_scores
from deepres.detection.voc_protocol import ClassCurve, mean_ap, voc_curves
from deepres.training.distribute import DistributedContext
from deepres.training.speed import SPEEDS, Speed


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """Figures of a detector on a split. Average precisions are shares in 0..1."""

    coco: CocoScores
    voc07: float  # mean over the classes, 11 points
    voc12: float  # mean over the classes, all recalls
    curves: tuple[ClassCurve, ...]  # of the classes, at IoU 0.5
    found: tuple[ImageDetections, ...]  # in each image
    images_per_second: float  # of this process, decoding included

    def to_dict(self) -> dict[str, Any]:
        """All figures as values that JSON takes."""
        plain = dataclasses.asdict(self.coco)
        voc = {curve.name: [_plain(curve.ap07()), _plain(curve.ap12())] for curve in self.curves}
        figures = {key: value if isinstance(value, dict) else _plain(value) for key, value in plain.items()}
        figures["by_class"] = {name: list(map(_plain, pair)) for name, pair in self.coco.by_class.items()}
        return {"coco": figures, "voc07": _plain(self.voc07), "voc12": _plain(self.voc12), "voc_by_class": voc}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


@torch.inference_mode()
def detect_all(
    model: nn.Module,
    examples: Sequence[BoxExample],
    *,
    batch: int = 8,
    speed: Speed = SPEEDS["float32"],
    context: DistributedContext | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ImageDetections]:
    """The detections of ``model`` in each of ``examples``; under ``torchrun`` each process takes a share and all get everything."""
    context = context or DistributedContext(device_of(model))
    mine = list(range(len(examples)))[context.shard.of(len(examples))]
    found = []
    with kept_modes(model):
        model.eval()
        for first in range(0, len(mine), batch):
            images = [load_picture(examples[i]).to(context.device).float() / 255 for i in mine[first : first + batch]]
            with speed.autocast(context.device):
                results = model(images)
            for one in results:
                order = one["scores"].float().argsort(descending=True, stable=True)
                boxes, labels, scores = (one[key][order].cpu() for key in ("boxes", "labels", "scores"))
                found.append(ImageDetections(boxes.float(), labels - 1, scores.float()))
            progress(min(first + batch, len(mine)), len(mine))
    if context.world > 1:
        parts: list[Any] = [None] * context.world
        dist.all_gather_object(parts, found)
        found = [one for part in parts for one in part]
    return found


def measure_detector(
    model: nn.Module, examples: Sequence[BoxExample], classes: Sequence[str], **options: Any
) -> DetectionScores:
    """Evaluate ``model`` on ``examples`` by the COCO and both VOC protocols; ``options`` are those of ``detect_all``."""
    began = time.perf_counter()
    found = detect_all(model, examples, **options)
    seconds = time.perf_counter() - began
    return scored(examples, found, classes, len(examples) / seconds if seconds else 0.0)


def scored(
    examples: Sequence[BoxExample], found: Sequence[ImageDetections], classes: Sequence[str], rate: float = 0.0
) -> DetectionScores:
    """The figures of detections that were made before."""
    curves = voc_curves(examples, found, classes)
    coco = coco_scores(examples, found, classes)
    return DetectionScores(coco, mean_ap(curves, 7), mean_ap(curves, 12), tuple(curves), tuple(found), rate)
