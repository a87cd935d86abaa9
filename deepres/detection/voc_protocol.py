"""Evaluation by Pascal VOC's protocols: average precision at IoU 0.5, of 2007 at 11 recalls and of 2010 to 2012 over all recalls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from deepres.data.detection import BoxExample
from deepres.detection.coco_protocol import ImageDetections


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """Precision and recall of one class as the score threshold falls, a value for each detection that counts."""

    name: str
    objects: int  # to be found
    scores: Tensor  # (n,), falling
    precision: Tensor  # (n,)
    recall: Tensor  # (n,)

    def ap07(self) -> float:
        """Mean over the recalls 0, 0.1, ..., 1 of the highest precision at this recall or above; NaN without objects."""
        if not self.objects:
            return math.nan
        levels = torch.linspace(0, 1, 11, dtype=torch.float64)
        best = [self.precision[self.recall >= level - 1e-12] for level in levels]
        return sum(float(one.max()) if len(one) else 0.0 for one in best) / 11

    def ap12(self) -> float:
        """Area under the curve whose precision is the highest at each recall or above; NaN without objects."""
        if not self.objects:
            return math.nan
        envelope = self.precision.flip(0).cummax(0).values.flip(0) if len(self.precision) else self.precision
        steps = torch.diff(self.recall, prepend=self.recall.new_zeros(1))
        return float((steps * envelope).sum())


def voc_curves(
    examples: Sequence[BoxExample], found: Sequence[ImageDetections], classes: Sequence[str], threshold: float = 0.5
) -> list[ClassCurve]:
    """The curve of each class. A detection is right if its IoU with the object that it overlaps most is at least ``threshold``
    and no more confident detection has that object. Detections on ignored objects count neither as right nor as wrong.

    As in Pascal's development kit, an object that is taken already is not exchanged for the next best one.
    """
    return [_curve(examples, found, name, label, threshold) for label, name in enumerate(classes)]


def _curve(
    examples: Sequence[BoxExample], found: Sequence[ImageDetections], name: str, label: int, threshold: float
) -> ClassCurve:
    scores, right, counts = [], [], 0
    for example, one in zip(examples, found, strict=True):
        mine = example.labels == label
        truth, ignored = example.boxes[mine], example.ignored[mine]
        counts += int((~ignored).sum())
        chosen = one.labels == label
        order = one.scores[chosen].argsort(descending=True, stable=True)
        boxes, confidence = one.boxes[chosen][order], one.scores[chosen][order]
        overlap, nearest = box_iou(boxes, truth).max(1) if len(truth) else (torch.zeros(len(boxes)), torch.zeros(len(boxes)))
        taken: set[int] = set()
        for score, value, target in zip(confidence.tolist(), overlap.tolist(), nearest.long().tolist(), strict=True):
            hit = value >= threshold
            if hit and ignored[target]:
                continue
            scores.append(score)
            right.append(hit and target not in taken)
            if hit:
                taken.add(target)
    order = torch.tensor(scores, dtype=torch.float64).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    return ClassCurve(name, counts, torch.tensor(scores)[order], precision, hits / max(counts, 1))


def mean_ap(curves: Sequence[ClassCurve], year: int = 12) -> float:
    """Mean of the classes' average precision, of the classes that have objects. ``year``: 7 (11 recalls) or 12."""
    values = [curve.ap07() if year == 7 else curve.ap12() for curve in curves]
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
