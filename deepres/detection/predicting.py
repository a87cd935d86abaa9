"""Detection in image files: pictures with boxes, a JSON file, and COCO results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from deepres.adapters import device_of
from deepres.data import UnreadableImage, is_image_name, open_image
from deepres.detection.coco_protocol import ImageDetections
from deepres.detection.drawing import draw_boxes
from deepres.detection.faster_rcnn import Detector
from deepres.detection.options import DrawOptions
from deepres.errors import DeepresError

LISTED_CONFIDENCE = 0.05  # confidence below which the files list no detection; pictures show those above the threshold only


PADDED = 32  # sides of padded images are multiples of it


@dataclass(frozen=True, eq=False)
class DetectedImage:
    """An image and what was found in it, or why it could not be read."""

    file: str
    size: tuple[int, int]  # (width, height) in pixels
    found: ImageDetections | None
    error: str = ""

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Values that JSON takes: each object with its class, confidence and box (left, top, right, bottom)."""
        assert self.found is not None
        rows = zip(self.found.boxes.tolist(), self.found.labels.tolist(), self.found.scores.tolist(), strict=True)
        objects = [
            {"class": classes[label], "confidence": round(score, 4), "box": [round(v, 2) for v in box]}
            for box, label, score in rows
        ]
        return {"file": self.file, "width": self.size[0], "height": self.size[1], "objects": objects}


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """The images that ``paths``, of files and folders, name. Raises ``DeepresError`` where there are none."""
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found += sorted(inner for inner in path.rglob("*") if inner.is_file() and is_image_name(inner.name))
        elif path.exists():
            found.append(path)
        else:
            raise DeepresError(f"{path}: no such image or folder")
    if not paths:
        raise DeepresError("which images? Give image files, or folders of them")
    if not found:
        raise DeepresError(f"{', '.join(map(str, paths))}: no images there")
    return found


@torch.inference_mode()
def detect_files(model: nn.Module, paths: Sequence[str | Path]) -> Iterator[DetectedImage]:
    """Detect in image files, and those in folders, one after the other. A file that cannot be read is given with its ``error``."""
    device = device_of(model)
    model.eval()
    for path in image_files(paths):
        try:
            image = open_image(path)
        except UnreadableImage as error:
            yield DetectedImage(str(path), (0, 0), None, str(error))
            continue
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device).float() / 255
        one = model([pixels])[0]
        kept = one["scores"] >= LISTED_CONFIDENCE
        boxes, labels, scores = (one[key][kept].cpu() for key in ("boxes", "labels", "scores"))
        yield DetectedImage(str(path), image.size, ImageDetections(boxes.float(), labels - 1, scores.float()))


@torch.inference_mode()
def detect_resized(model: Detector, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Detections in images (3, h, w) that have been resized as the detector's transform does, from ``sizes`` (height, width).

    Each is padded as it is alone, so that no answer depends on the other images: those of one padded size run together.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        tall, wide = (-(-side // PADDED) * PADDED for side in image.shape[-2:])
        groups.setdefault((tall, wide), []).append(place)
    found: dict[int, dict[str, Tensor]] = {}
    transform = model.transform
    for places in groups.values():
        shapes = [(int(images[i].shape[-2]), int(images[i].shape[-1])) for i in places]
        batch = transform.batch_images([transform.normalize(images[i]) for i in places], PADDED)
        features = model.backbone(batch)
        proposals, _ = model.rpn(ImageList(batch, shapes), features)
        answers, _ = model.roi_heads(features, proposals, shapes)
        found |= zip(places, transform.postprocess(answers, shapes, [sizes[i] for i in places]), strict=True)
    return [found[place] for place in range(len(images))]


def picture_paths(files: Sequence[str | Path], out: Path) -> list[Path]:
    """A path in the folder ``out`` for the picture of each of ``files``, by its name, with a number where that is taken.

    Raises ``DeepresError`` where a picture would take the place of one of ``files``.
    """
    found: dict[str, Path] = {}
    for number, file in enumerate(files, 1):
        stem = Path(file).stem
        names = itertools.chain((stem,), (f"{stem}-{n}" for n in itertools.count(number)))
        name = next(name for name in names if name not in found)
        found[name] = out / f"{name}.jpg"
    originals = {Path(file).resolve() for file in files}
    if taken := next((path for path in found.values() if path.resolve() in originals), None):
        raise DeepresError(
            f"{taken}: is one of the images, and the picture with its boxes would replace it; give another folder as --out"
        )
    return [*found.values()]


def write_detections(
    answers: Sequence[DetectedImage], classes: Sequence[str], out: Path, *, threshold: float = DrawOptions.threshold,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:  # fmt: skip
    """Write ``answers`` into the folder ``out``: ``detections.json``, ``coco-results.json`` with the images' ids in
    ``coco-images.json``, and a picture of each image with the boxes of at least ``threshold`` confidence.

    Raises ``DeepresError`` where a picture would replace one of the images; nothing is written then.
    """
    good = [one for one in answers if one.found is not None]
    paths = picture_paths([one.file for one in good], out)
    out.mkdir(parents=True, exist_ok=True)
    results, images = [], []
    for number, (one, path) in enumerate(zip(good, paths, strict=True), 1):
        assert one.found is not None
        images.append({"id": number, "file_name": Path(one.file).name, "width": one.size[0], "height": one.size[1]})
        for entry in one.to_dict(classes)["objects"]:
            left, top, right, bottom = entry["box"]
            box = [left, top, round(right - left, 2), round(bottom - top, 2)]
            category = list(classes).index(entry["class"]) + 1
            results.append({"image_id": number, "category_id": category, "bbox": box, "score": entry["confidence"]})
        draw_boxes(open_image(one.file), one.found, classes, threshold=threshold).save(path, quality=92)
        progress(number, len(good))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    (out / "detections.json").write_text(json.dumps([one.to_dict(classes) for one in good], indent=1))
    (out / "coco-results.json").write_text(json.dumps(results))
    (out / "coco-images.json").write_text(json.dumps({"images": images, "categories": categories}, indent=1))
    return out
