"""Testing with more than one pass: several sizes, mirrored images, regions refined a second time, several detectors.

He et al. 2015, appendix B, table 9. Detections of all passes are fused, box by box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from deepres.detection.faster_rcnn import Detector
from deepres.errors import DeepresError

OVERLAP = 0.55  # IoU from which detections of two passes are taken as of one object (Solovyev et al. 2021)

Detection = dict[str, Tensor]


class CombinedDetector(nn.Module):
    """Detectors that answer together, ``model(images) -> [{"boxes", "labels", "scores"}, ...]`` as one of them does.

    ``scales``: factors of the usual size at which every image is seen. ``flip``: each also mirrored. ``refine``: boxes are pooled and
    regressed a second time from where the first pass puts them.

    Raises ``DeepresError`` for detectors of different classes.
    """

    def __init__(
        self, models: Sequence[Detector], *, scales: Sequence[float] = (1.0,), flip: bool = False, refine: bool = False
    ) -> None:
        super().__init__()
        if len({model.config.classes for model in models}) != 1:
            raise DeepresError("detectors that answer together must have the same classes, in the same order")
        if not scales or min(scales) <= 0:
            raise DeepresError(f"scales are factors above 0, not {tuple(scales)}")
        self.models = nn.ModuleList(models)
        self.scales, self.flip, self.refine = tuple(scales), flip, refine

    @property
    def config(self) -> Any:
        """The first detector's configuration, whose classes are those of all."""
        return self.models[0].config

    @property
    def passes(self) -> int:
        """Number of times that an image is seen."""
        return len(self.models) * len(self.scales) * (2 if self.flip else 1)

    def forward(self, images: list[Tensor]) -> list[Detection]:
        found: list[list[Detection]] = [[] for _ in images]
        for model in self.models:
            assert isinstance(model, Detector)
            for scale in self.scales:
                with _scaled(model, scale):
                    for mirrored in (False, True) if self.flip else (False,):
                        seen = [image.flip(-1) for image in images] if mirrored else images
                        answers = refined(model, seen) if self.refine else model(seen)
                        for place, one in enumerate(answers):
                            boxes = mirror(one["boxes"], images[place].shape[-1]) if mirrored else one["boxes"]
                            found[place].append({**one, "boxes": boxes})
        if self.passes == 1:
            return [passes[0] for passes in found]
        return [fuse(passes) for passes in found]


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
