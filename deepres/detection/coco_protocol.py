"""Evaluation by the COCO protocol, with ``faster-coco-eval``: AP over IoU thresholds 0.50 to 0.95, by size and by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepres.data.detection import BoxExample
from deepres.errors import DeepresError


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """Detections in one image, the most confident first."""

    boxes: Tensor  # (n, 4) float32: left, top, right, bottom in pixels of the image
    labels: Tensor  # (n,) int64, indices into the classes
    scores: Tensor  # (n,) float32, in 0..1


@dataclass(frozen=True)
class CocoScores:
    """The twelve figures of the COCO protocol, and AP by class. All are shares in 0..1; NaN where there is nothing to find."""

    ap: float  # mean over IoU thresholds 0.50, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_small: float  # boxes below 32 x 32 pixels
    ap_medium: float
    ap_large: float  # from 96 x 96 pixels
    ar1: float  # recall with one detection an image, mean over the thresholds
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    by_class: dict[str, tuple[float, float]] = field(default_factory=dict, kw_only=True)  # (AP, AP at IoU 0.50)


def ground_truth(examples: Sequence[BoxExample], classes: Sequence[str]) -> dict[str, Any]:
    """``examples`` as the content of a COCO annotation file; ids are places, counted from 1. Ignored boxes are its crowds."""
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(examples, 1):
        for box, label, ignored in zip(one.boxes.tolist(), one.labels.tolist(), one.ignored.tolist(), strict=True):
            wide, tall = box[2] - box[0], box[3] - box[1]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": [*box[:2], wide, tall]}
            annotations.append({**entry, "area": wide * tall, "iscrowd": int(ignored)})
    images = [
        {"id": number, "file_name": one.path.name, "width": one.size[0], "height": one.size[1]}
        for number, one in enumerate(examples, 1)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in enumerate(classes, 1)],
    }


def coco_results(found: Sequence[ImageDetections]) -> list[dict[str, Any]]:
    """Detections as the content of a COCO results file, with the ids of ``ground_truth``."""
    return [
        {
            "image_id": number,
            "category_id": label + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for number, one in enumerate(found, 1)
        for box, label, score in zip(one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(), strict=True)
    ]


def coco_scores(examples: Sequence[BoxExample], found: Sequence[ImageDetections], classes: Sequence[str]) -> CocoScores:
    """Evaluate ``found``, one for each of ``examples``.

    Raises ``DeepresError`` where ``faster-coco-eval`` is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise DeepresError("faster-coco-eval is not installed; install deepres[detect]") from error
    results = coco_results(found)
    if not results:  # the library cannot load an empty list
        return _nothing_found(examples, classes)
    truth = COCO(ground_truth(examples, classes))
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = [_share(value) for value in evaluation.stats[:12]]
    precision = torch.as_tensor(evaluation.eval["precision"])[:, :, :, 0, -1]  # (thresholds, recalls, classes)
    by_class = {name: (_mean(precision[:, :, i]), _mean(precision[0, :, i])) for i, name in enumerate(classes)}
    return CocoScores(*figures, by_class=by_class)


def _nothing_found(examples: Sequence[BoxExample], classes: Sequence[str]) -> CocoScores:
    """The scores without any detection: 0 where there are objects to find, else NaN."""
    boxes = torch.cat([torch.zeros(0, 4), *(one.boxes[~one.ignored] for one in examples)])
    labels = {int(label) for one in examples for label in one.labels[~one.ignored]}
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    small, large = 32.0**2, 96.0**2
    sized = [areas <= small, (areas >= small) & (areas <= large), areas >= large]
    every, *by_size = (0.0 if bool(kind.any()) else math.nan for kind in (areas >= 0, *sized))
    figures = [every] * 3 + by_size
    by_class = {name: (0.0, 0.0) if label in labels else (math.nan, math.nan) for label, name in enumerate(classes)}
    return CocoScores(*figures, *figures, by_class=by_class)


def _share(value: float) -> float:
    """The library says -1 where there is nothing to find."""
    return math.nan if value < 0 else float(value)


def _mean(precision: Tensor) -> float:
    known = precision[precision >= 0]
    return float(known.mean()) if known.numel() else math.nan
