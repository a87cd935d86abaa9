"""``export_detector``: a detector as an ONNX file, compared box by box with the original before it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.export import Dim
from torchvision.ops import box_iou

from deepres import __version__
from deepres.adapters import on_cpu
from deepres.data import open_image, seeded
from deepres.data.detection import open_boxes
from deepres.detection import Detector, load_detector
from deepres.detection.graph import DetectorGraph
from deepres.detection.predicting import PADDED
from deepres.engines.exporters import need_engine, quiet
from deepres.engines.exporting import OPSETS, in_place
from deepres.engines.options import ExportOptions
from deepres.errors import DeepresError, first_line
from deepres.models.exported import PLACEHOLDER, stamp_bytes

COMPARED = 12  # images
PIXELS, SCORE = 0.5, 1e-3  # differences of a box and of a score that rounding may make
ALIKE = 0.9  # overlap of a box with its counterpart, at least
UNSURE = 0.01  # share of the boxes that may have no counterpart: near a threshold, rounding decides whether a box is kept
INPUT, OUTPUTS = "image", ["boxes", "labels", "scores"]
WHY_ONNX = (
    "a detector is exported to ONNX only: the other formats have no operation for non-maximum suppression and region pooling; "
    "OpenVINO, TensorRT and others read the ONNX file"
)


@dataclass(frozen=True)
class DetectorExport:
    """Result of ``export_detector``: the file, and how its boxes compare with the original's."""

    path: Path
    engine: str  # that loaded the file again, with its version
    source: str  # of the images that were compared
    images: int
    boxes: int  # of the original, in these images
    unmatched: int  # boxes of either that have no counterpart
    pixels: float  # the largest difference of a box's side, in pixels of the image
    score: float  # the largest difference of a score
    changed: int  # boxes with another label
    canvas: tuple[int, int]  # (height, width) that images are padded to in the file
    bytes: int

    def lines(self) -> list[str]:
        """Sentences for the user."""
        return [
            f"{self.path}: {self.bytes / 1e6:,.1f} MB, loaded again by {self.engine}",
            f"{self.boxes} boxes in {self.images} images ({self.source}): {self.unmatched} without a counterpart, {self.changed} with "
            f"another label, largest difference {self.pixels:.2g} pixels and {self.score:.2g} of a score",
        ]


def export_detector(
    model: Detector | str | Path,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    opset: int = ExportOptions.opset,
) -> DetectorExport:
    """Export a detector with its preparation of images to an ONNX file: ``image`` (H, W, 3), uint8, of any size ->
    ``boxes`` (n, 4) in pixels of the image, ``labels`` (n,) that count from 0, ``scores`` (n,), the best first.

    >>> export_detector("runs/cells", out="cells.onnx", data="cells").pixels

    The file's metadata hold the names of the classes (``labels``), the size of the resized images and a checksum. Before the file is
    kept, ONNX Runtime and the original are compared box by box on validation images of ``data``, or on windows of two photographs.

    Raises ``DeepresError`` for another engine than ONNX, where ``onnx`` or ``onnxruntime`` is missing, and where the boxes differ.
    """
    if to != "onnx":
        raise DeepresError(f"cannot export a detector to {to}: {WHY_ONNX}")
    if opset not in OPSETS:
        raise DeepresError(f"ONNX opset {opset}: torch.onnx writes {OPSETS[0]} to {OPSETS[-1]}")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        need_engine(name)
    name = "detector" if isinstance(model, Detector) else Path(model).stem
    net: Detector = model if isinstance(model, Detector) else load_detector(model)
    path = Path(out) if out is not None else Path(f"{name}.onnx")
    if path.suffix != ".onnx":
        raise DeepresError(f"{path}: a file of onnx ends in .onnx; name it {path.with_suffix('.onnx')}")
    images, source = _images(data, net.config.classes)
    with on_cpu(net):
        graph = DetectorGraph(net, _canvas(net))
        before = net.transform.canvas
        net.transform.canvas = graph.canvas  # as the file pads images
        try:
            with in_place(path) as temporary:
                _write(graph, temporary, _metadata(net, path.stem), opset)
                result = _compared(net, temporary, images, path, source, graph.canvas)
        finally:
            net.transform.canvas = before
    return result


def _canvas(model: Detector) -> tuple[int, int]:
    """The configuration's canvas; without one, a square that resized images of every shape fit into."""
    side = -(-model.config.longest // PADDED) * PADDED
    return model.config.canvas or (side, side)


def _metadata(model: Detector, name: str) -> dict[str, str]:
    config = model.config
    return {
        "deepres": __version__,
        "format": "onnx",
        "name": name,
        "inputs": "image",
        "task": "detection",
        "labels": json.dumps(list(config.classes)),
        "size": json.dumps({"short": config.size, "longest": config.longest}),
    }


def _write(graph: DetectorGraph, path: Path, metadata: dict[str, str], opset: int) -> None:
    example = torch.zeros(graph.canvas[0] + 7, graph.canvas[1] + 11, 3, dtype=torch.uint8)
    sides = {0: Dim("height", min=2), 1: Dim("width", min=2)}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(graph.eval(), (example,), dynamic_shapes=(sides,), strict=False)
            built: Any = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=[INPUT],
                output_names=OUTPUTS,
                custom_translation_table=_translations(),
            )
    except Exception as error:  # whatever the network's code does with symbolic sizes
        raise DeepresError(
            f"{type(graph.model.net).__name__}: the detector cannot be captured as a graph ({first_line(error, 160)})"
        ) from error
    built.model.metadata_props.update({**metadata, "sha256": PLACEHOLDER})
    built.save(str(path))
    stamp_bytes(path)


def _translations() -> dict[Any, Any]:
    """The graph's own operations as ONNX operations."""
    from onnxscript import opset18

    op: Any = opset18  # whose annotations are those of ONNX's own functions

    def suppress(boxes: Any, scores: Any, overlap: float, count: int) -> Any:
        chosen = op.NonMaxSuppression(
            op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
            op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
            op.Constant(value_ints=[count]),
            op.Constant(value_floats=[overlap]),
            op.Constant(value_floats=[0.0]),
        )
        index = op.Reshape(op.Gather(chosen, op.Constant(value_ints=[2]), axis=1), op.Constant(value_ints=[-1]))
        padded = op.Concat(index, op.Constant(value_ints=[-1] * count), axis=0)
        return op.Slice(padded, op.Constant(value_ints=[0]), op.Constant(value_ints=[count]))

    def region_pool(maps: Sequence[Any], boxes: Any, level: Any, scales: Sequence[float], side: int) -> Any:
        flat = op.Constant(value_ints=[-1])
        places, features = [], []
        for number, (one, scale) in enumerate(zip(maps, scales, strict=True)):
            place = op.Reshape(op.NonZero(op.Equal(level, op.Constant(value_int=number))), flat)
            mine = op.Gather(boxes, place, axis=0)
            image = op.Mul(place, op.Constant(value_int=0))
            features.append(
                op.RoiAlign(
                    *(one, mine, image),
                    coordinate_transformation_mode="output_half_pixel",
                    spatial_scale=float(scale),
                    output_height=side,
                    output_width=side,
                    sampling_ratio=2,
                )
            )
            places.append(place)
        if len(features) == 1:
            return features[0]
        found = op.Concat(*features, axis=0)
        return op.ScatterND(found, op.Unsqueeze(op.Concat(*places, axis=0), op.Constant(value_ints=[1])), found)

    ours = torch.ops.deepres
    return {ours.suppress.default: suppress, ours.region_pool.default: region_pool}


def _images(data: str | Path | None, classes: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """Images (H, W, 3) uint8 of different sizes, and where they come from."""
    if data is not None:
        found = open_boxes(data, classes=classes)
        chosen = found.val[:COMPARED]
        return [np.array(open_image(one.path)) for one in chosen], f"validation images of {found.name}"
    from sklearn.datasets import load_sample_images

    draw, windows = seeded(0), []
    for picture in load_sample_images().images:
        for _ in range(COMPARED // 2):
            tall, wide = (int(torch.randint(side // 4, side, (), generator=draw)) for side in picture.shape[:2])
            windows.append(np.array(Image.fromarray(picture[:tall, :wide])))
    return windows, "windows of two photographs"


@torch.no_grad()
def _compared(
    model: Detector, file: Path, images: list[np.ndarray], path: Path, source: str, canvas: tuple[int, int]
) -> DetectorExport:
    """Raises ``DeepresError`` where the file does not give the original's boxes."""
    from deepres.engines.detector_onnx import ExportedDetector

    exported = ExportedDetector(file)
    boxes = unmatched = changed = 0
    pixels = score = 0.0
    for image in images:
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        expected, got = model([tensor])[0], exported([tensor])[0]
        one, two, other = paired(expected, got)
        boxes += len(expected["boxes"])
        unmatched += len(expected["boxes"]) + len(got["boxes"]) - 2 * len(one)
        changed += other
        if len(one):
            pixels = max(pixels, float((expected["boxes"][one] - got["boxes"][two]).abs().max()))
            score = max(score, float((expected["scores"][one] - got["scores"][two]).abs().max()))
    if unmatched > max(1, UNSURE * 2 * boxes) or changed or not (pixels <= PIXELS and score <= SCORE):
        raise DeepresError(
            f"{path}: not written, as {exported.engine} gives other boxes than the detector: of {boxes} boxes in {len(images)} images "
            f"{unmatched} have no counterpart and {changed} another label; largest difference {pixels:.2g} pixels, {score:.2g} of a score"
        )
    size = file.stat().st_size
    return DetectorExport(path, exported.engine, source, len(images), boxes, unmatched, pixels, score, changed, canvas, size)


def paired(one: dict[str, Tensor], two: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Boxes of two lists that are the same but for rounding: (indices into one, indices into two, pairs with another label).

    Partners overlap by more than ``ALIKE`` and have about the same score; of several, the one with the same label comes first.
    """
    if not len(one["boxes"]) or not len(two["boxes"]):
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, 0
    overlap = box_iou(one["boxes"], two["boxes"])
    close = (one["scores"][:, None] - two["scores"][None]).abs() < 1 - ALIKE
    same = one["labels"][:, None] == two["labels"][None]
    likeness = torch.where(close & (overlap > ALIKE), overlap + same.float(), 0.0)
    best = likeness.max(1)
    first = ((best.values > 0) & (likeness.argmax(0)[best.indices] == torch.arange(len(likeness)))).nonzero()[:, 0]
    second = best.indices[first]
    return first, second, int((one["labels"][first] != two["labels"][second]).sum())
