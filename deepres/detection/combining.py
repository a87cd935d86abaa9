"""Testing with more than one pass: several sizes, mirrored images, regions refined a second time, several detectors.

He et al. 2015, appendix B, table 9. Detections of all passes are fused, box by box.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_iou

from deepres.detection.faster_rcnn import Detector
from deepres.detection.options import Join, PassOptions
from deepres.errors import DeepresError

OVERLAP = 0.55  # IoU from which detections of two passes are taken as of one object (Solovyev et al. 2021)

Detection = dict[str, Tensor]


class CombinedDetector(nn.Module):
    """Detectors that answer together, ``model(images) -> [{"boxes", "labels", "scores"}, ...]`` as one of them does.

    ``scales``: factors of the usual size at which every image is seen. ``flip``: each also mirrored. ``refine``: boxes are pooled and
    regressed a second time from where the first pass puts them. ``join``: several detectors' boxes are fused, or, with "proposals", each
    judges the proposals of all, and the probabilities and boxes of each proposal are averaged (He et al. 2015, appendix B).

    Raises ``DeepresError`` for detectors of different classes.
    """

    def __init__(
        self,
        models: Sequence[Detector],
        *,
        scales: Sequence[float] = PassOptions.scales,
        flip: bool = PassOptions.flip,
        refine: bool = PassOptions.refine,
        join: Join = PassOptions.join,
    ) -> None:
        super().__init__()
        if len({model.config.classes for model in models}) != 1:
            raise DeepresError("detectors that answer together must have the same classes, in the same order")
        if not scales or min(scales) <= 0:
            raise DeepresError(f"scales are factors above 0, not {tuple(scales)}")
        if join not in get_args(Join):
            raise DeepresError(f"detectors are joined by {' or '.join(get_args(Join))}, not {join!r}")
        if join == "proposals" and refine:
            raise DeepresError(
                "boxes are refined for each detector alone: leave out --refine, or join detectors by their boxes"
            )
        self.models = nn.ModuleList(models)
        self.join = join
        self.scales, self.flip, self.refine = tuple(scales), flip, refine

    @property
    def config(self) -> Any:
        """The first detector's configuration, whose classes are those of all."""
        return self.models[0].config

    @property
    def passes(self) -> int:
        """Number of lists of detections that are fused."""
        return len(self._together()) * len(self.scales) * (2 if self.flip else 1)

    def forward(self, images: list[Tensor]) -> list[Detection]:
        found: list[list[Detection]] = [[] for _ in images]
        for models in self._together():
            for scale in self.scales:
                with ExitStack() as stack:
                    for model in models:
                        stack.enter_context(_scaled(model, scale))
                    for mirrored in (False, True) if self.flip else (False,):
                        seen = [image.flip(-1) for image in images] if mirrored else images
                        if len(models) > 1:
                            answers = joined(models, seen)
                        else:
                            answers = refined(models[0], seen) if self.refine else models[0](seen)
                        for place, one in enumerate(answers):
                            boxes = mirror(one["boxes"], images[place].shape[-1]) if mirrored else one["boxes"]
                            found[place].append({**one, "boxes": boxes})
        if self.passes == 1:
            return [passes[0] for passes in found]
        return [fuse(passes) for passes in found]

    def _together(self) -> list[list[Detector]]:
        """The detectors, those that share their proposals together."""
        models: list[Any] = list(self.models)
        return [models] if self.join == "proposals" else [[model] for model in models]


class _scaled:
    """While open, a detector resizes images to ``scale`` times its usual size."""

    def __init__(self, model: Detector, scale: float) -> None:
        self.transform, self.scale = model.transform, scale

    def __enter__(self) -> None:
        transform = self.transform
        self.before = (transform.min_size, transform.max_size, transform.canvas)
        if self.scale != 1:
            transform.min_size = tuple(round(side * self.scale) for side in transform.min_size)
            transform.max_size, transform.canvas = round(transform.max_size * self.scale), None

    def __exit__(self, *_: object) -> None:
        self.transform.min_size, self.transform.max_size, self.transform.canvas = self.before


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (n, 4) of an image mirrored left to right, of ``width`` pixels, in the image as it was."""
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack((width - right, top, width - left, bottom), 1)


def joined(models: Sequence[Detector], images: list[Tensor]) -> list[Detection]:
    """Detections of ``models`` that each judge the proposals of all: probabilities and boxes of each proposal are averaged.

    Boxes are averaged in the coordinates of the first detector's resized images.
    """
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    batches = [model.transform(list(images))[0] for model in models]
    features = [model.backbone(batch.tensors) for model, batch in zip(models, batches, strict=True)]
    shapes = batches[0].image_sizes
    union: list[list[Tensor]] = [[] for _ in images]
    for model, batch, maps in zip(models, batches, features, strict=True):
        for place, boxes in enumerate(model.rpn(batch, maps)[0]):
            union[place].append(resize_boxes(boxes, list(batch.image_sizes[place]), list(shapes[place])))
    proposals = [torch.cat(parts) for parts in union]
    chances, boxes = [], []
    for model, batch, maps in zip(models, batches, features, strict=True):
        heads, given = model.roi_heads, []
        for one, own, first in zip(proposals, batch.image_sizes, shapes, strict=True):
            given.append(resize_boxes(one, list(first), list(own)))
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, given, batch.image_sizes)))
        chances.append(logits.softmax(1))
        # boxes are decoded from the proposals as the first detector sees them, so that all are in its coordinates
        boxes.append(heads.box_coder.decode(deltas, proposals))
    mean, heads = torch.stack(chances).mean(0), models[0].roi_heads
    deltas = encoded(heads, torch.stack(boxes).mean(0), proposals)
    found, scores, labels = heads.postprocess_detections(mean.log(), deltas, proposals, shapes)
    answers = [{"boxes": b, "labels": c, "scores": s} for b, c, s in zip(found, labels, scores, strict=True)]
    return models[0].transform.postprocess(answers, shapes, sizes)


def encoded(heads: Any, boxes: Tensor, proposals: list[Tensor]) -> Tensor:
    """Boxes (R, classes, 4) as changes of their proposals (R, 4) -> (R, 4 * classes), which ``heads`` decode again."""
    every = torch.cat(proposals)
    columns = [heads.box_coder.encode_single(one, every) for one in boxes.unbind(1)]
    return torch.cat(columns, 1)


def refined(model: Detector, images: list[Tensor]) -> list[Detection]:
    """Detections whose boxes were pooled and regressed a second time, fused with those of the first."""
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    batch, _ = model.transform(images)
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    first, _ = model.roi_heads(features, proposals, batch.image_sizes)
    second, _ = model.roi_heads(features, [one["boxes"] for one in first], batch.image_sizes)
    both = [fuse(list(pair)) for pair in zip(first, second, strict=True)]
    return model.transform.postprocess(both, batch.image_sizes, sizes)


def fuse(passes: Sequence[Detection], overlap: float = OVERLAP) -> Detection:
    """One detection for each group of detections of one class that overlap: weighted boxes fusion (Solovyev et al. 2021).

    The box is the mean by confidence; the confidence is the sum of the passes' highest, divided by the number of passes.
    """
    boxes, labels, scores = (torch.cat([one[key] for one in passes]).float() for key in ("boxes", "labels", "scores"))
    source = torch.cat([torch.full((len(one["scores"]),), number) for number, one in enumerate(passes)])
    order = scores.argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    near = box_iou(boxes, boxes) if len(boxes) else boxes
    for i in order.tolist():
        home = next(
            (g for g in groups if labels[g[0]] == labels[i] and near[g[0], i] >= overlap and source[i] not in source[g]), None
        )
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    fused = [
        ((boxes[g] * scores[g][:, None]).sum(0) / scores[g].sum(), labels[g[0]], scores[g].sum() / len(passes)) for g in groups
    ]
    fused.sort(key=lambda one: -float(one[2]))
    if not fused:
        return {"boxes": boxes, "labels": labels.long(), "scores": scores}
    return {
        "boxes": torch.stack([one[0] for one in fused]),
        "labels": torch.stack([one[1] for one in fused]).long(),
        "scores": torch.stack([one[2] for one in fused]),
    }
