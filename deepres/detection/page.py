"""The pages of detection: what the data hold, and what a detector finds and misses."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from deepres.data import open_image
from deepres.data.detection import BoxData, BoxExample
from deepres.data.detection.opening import problem_report
from deepres.detection.coco_protocol import ImageDetections
from deepres.detection.drawing import BOX_COLOURS
from deepres.detection.measure import DetectionScores
from deepres.detection.reporter import DetectRecord
from deepres.report import Page, Table

PICTURES_SHOWN = 12  # photographs on a page
MISTAKES = 12
MISTAKE_MARGIN = 0.8  # of a mistake's box, shown around it
SIDE = 640  # pixels of a photograph on a page, at most
HIT = 0.5  # IoU from which a detection is right


def survey_page(data: BoxData, *, problems: int = 30) -> Page:
    """A look at the data before training: classes, sizes of boxes, problems of annotations and examples."""
    from deepres.report.charts import Axis, Panel, Series, lines

    page = Page(f"{data.name}: images with boxes", str(data))
    page.summary([*(problem_report(data, 0).splitlines()[:1] or ["No problems were found in the annotations."]), *data.notes])
    page.table(_class_counts(data))
    sizes = []
    for label, name in enumerate(data.classes):
        boxes = torch.cat([one.boxes[one.labels == label] for one in data.train]) if data.train else torch.zeros(0, 4)
        wide, tall = (boxes[:, 2] - boxes[:, 0]).tolist(), (boxes[:, 3] - boxes[:, 1]).tolist()
        colour = BOX_COLOURS[label % len(BOX_COLOURS)]
        sizes.append(Series(name, wide, tall, mode="markers", size=4, opacity=0.5, colour=colour))
    figure = lines(Panel(Axis("width, pixels", from_zero=True), Axis("height, pixels", from_zero=True), sizes))
    page.figure(figure, "Sizes of the boxes in the training images.")
    page.heading("Examples")
    step = max(1, len(data.train) // PICTURES_SHOWN)
    shown = [
        (one, ImageDetections(one.boxes, one.labels, torch.ones(len(one.labels))))
        for one in data.train[::step][:PICTURES_SHOWN]
    ]
    pictures = [{**_picture(one, found, data.classes), "truth": []} for one, found in shown]
    page.boxes("Annotated training images", pictures, _key(data.classes))
    if data.problems:
        page.heading("Problems in the annotations")
        rows = [[Path(p.file).name, str(p.line), p.kind, p.text] for p in data.problems[:problems]]
        page.table(Table(f"The first {len(rows)} of {len(data.problems)}.", ("file", "line", "kind", "what"), rows))
    return page


def _class_counts(data: BoxData) -> Table:
    rows = []
    for label, name in enumerate(data.classes):
        counts = [sum(int((one.labels == label).sum()) for one in split) for split in (data.train, data.val, data.test)]
        sides = [(one.boxes[:, 2:] - one.boxes[:, :2]).prod(1).sqrt()[one.labels == label] for one in data.train]
        side = torch.cat(sides) if sides else torch.zeros(0)
        usual = f"{float(side.median()):.0f}" if len(side) else "-"
        rows.append([name, *map(str, counts), usual])
    head = ("class", "training", "validation", "test", "median side, pixels")
    return Table("Boxes by class and split.", head, rows)


def class_table(scores: DetectionScores) -> Table:
    """Average precision, and precision and recall at the threshold of the best F1, by class."""
    rows = []
    for curve in scores.curves:
        ap, ap50 = scores.coco.by_class[curve.name]
        both = curve.precision + curve.recall
        f1 = torch.where(both > 0, 2 * curve.precision * curve.recall / both, torch.zeros_like(both))
        at = int(f1.argmax()) if len(f1) else None
        best = (
            ("-",) * 3
            if at is None
            else tuple(f"{100 * float(v[at]):.1f}" for v in (curve.precision, curve.recall, curve.scores))
        )
        rows.append([curve.name, str(curve.objects), _percent(ap50), _percent(ap), _percent(curve.ap07()), *best])
    rows.append(["mean", "", _percent(scores.coco.ap50), _percent(scores.coco.ap), _percent(scores.voc07), "", "", ""])
    head = ("class", "objects", "AP@.5", "AP", "VOC07", "precision", "recall", "at confidence")
    return Table("Average precision in percent; precision and recall where their F1 is best.", head, rows)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def detection_page(
    data: BoxData,
    scores: DetectionScores,
    *,
    split: str = "test",
    history: Sequence[DetectRecord] = (),
    name: str = "",
    footer: str = "",
) -> Page:
    """A detector's page: figures by class, precision and recall, mAP over the epochs, photographs with a slider, worst mistakes."""
    from deepres.report.charts import Axis, Panel, Series, lines

    examples: tuple[BoxExample, ...] = getattr(data, split)
    coco = scores.coco
    page = Page(f"{name or 'Detector'} on {data.name}", f"{len(examples)} {split} images, {len(data.classes)} classes", footer)
    page.summary(
        [
            f"mAP at IoU 0.5 is {100 * coco.ap50:.1f} %, mAP over IoU 0.5 to 0.95 {100 * coco.ap:.1f} %.",
            f"By Pascal VOC's protocols it is {100 * scores.voc07:.1f} % (2007) and {100 * scores.voc12:.1f} % (2012).",
        ]
    )
    page.table(class_table(scores))
    colours = dict(_key(data.classes))
    curves = [
        Series(c.name, c.recall.tolist(), c.precision.tolist(), mode="lines", colour=colours[c.name]) for c in scores.curves
    ]
    full = (0.0, 1.02)
    page.figure(
        lines(Panel(Axis("recall", limits=full), Axis("precision", limits=full), curves)), "Precision and recall, IoU 0.5."
    )
    if history:
        epochs = [record.epoch for record in history]
        over = [
            Series("mAP@.5", epochs, [100 * record.ap50 for record in history]),
            Series("mAP", epochs, [100 * record.ap for record in history]),
        ]
        loss = [Series("training loss", epochs, [record.loss for record in history])]
        panels = (
            Panel(Axis("epoch"), Axis("%", from_zero=True), over),
            Panel(Axis("epoch"), Axis("loss", from_zero=True), loss),
        )
        page.figure(lines(*panels), "mAP on the validation images, and the training loss, over the epochs.")
    key = _key(data.classes)
    page.heading(f"What it finds in the {split} images")
    step = max(1, len(examples) // PICTURES_SHOWN)
    chosen = list(range(0, len(examples), step))[:PICTURES_SHOWN]
    pictures = [_picture(examples[i], scores.found[i], data.classes) for i in chosen]
    page.boxes("Photographs with the boxes found", pictures, key, threshold=0.5)
    if wrong := _mistakes(examples, scores.found, data.classes):
        page.heading("The worst mistakes")
        page.text("Confident detections that are no object of their class, and objects that were missed, the largest first.")
        page.boxes("The worst mistakes", wrong, key)
    return page


def _key(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Each class with its colour."""
    return [(name, BOX_COLOURS[i % len(BOX_COLOURS)]) for i, name in enumerate(classes)]


def _jpeg(example: BoxExample) -> str:
    image = open_image(example.path)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sides(box: Sequence[float]) -> list[float]:
    """Left, top, width and height, to a tenth of a pixel."""
    return [round(value, 1) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def _picture(example: BoxExample, found: ImageDetections, classes: Sequence[str]) -> dict[str, Any]:
    width, height = example.size
    rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return {
        "image": _jpeg(example),
        "width": width,
        "height": height,
        "view": f"0 0 {width} {height}",
        "caption": example.path.name,
        "truth": [_sides(box) for box in example.boxes.tolist()],
        "found": [
            (_sides(box), BOX_COLOURS[label % len(BOX_COLOURS)], round(score, 3), f"{classes[label]} {100 * score:.0f} %")
            for box, label, score in rows
            if score >= 0.05
        ],
    }


def _mistakes(examples: Sequence[BoxExample], found: Sequence[ImageDetections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Close-ups of the most confident false detections and of the largest objects that no detection of 0.5 has."""
    false: list[tuple[float, int, Tensor, str]] = []
    missed: list[tuple[float, int, Tensor, str]] = []
    for place, (example, one) in enumerate(zip(examples, found, strict=True)):
        overlap = box_iou(one.boxes, example.boxes) * (one.labels[:, None] == example.labels)
        best = overlap.max(1).values if len(example.boxes) else torch.zeros(len(one.boxes))
        for i in (best < HIT).nonzero().flatten().tolist():
            text = f"{classes[int(one.labels[i])]} with {100 * float(one.scores[i]):.0f} %: {_why(float(best[i]))}"
            false.append((float(one.scores[i]), place, one.boxes[i], text))
        sure = overlap[one.scores >= 0.5]
        seen = sure.max(0).values if len(sure) else torch.zeros(len(example.boxes))
        for i in ((seen < HIT) & ~example.ignored).nonzero().flatten().tolist():
            box = example.boxes[i]
            missed.append((float((box[2:] - box[:2]).prod()), place, box, f"{classes[int(example.labels[i])]} missed"))
    half = MISTAKES // 2
    chosen = sorted(false, key=lambda one: -one[0])[:half] + sorted(missed, key=lambda one: -one[0])[:half]
    pictures = []
    for _, place, box, text in chosen:
        one = found[place]
        keep = one.scores >= 0.5
        whole = _picture(examples[place], ImageDetections(one.boxes[keep], one.labels[keep], one.scores[keep]), classes)
        left, top, wide, tall = _sides(box.tolist())
        pad = MISTAKE_MARGIN * max(wide, tall)
        view = f"{left - pad:.0f} {top - pad:.0f} {wide + 2 * pad:.0f} {tall + 2 * pad:.0f}"
        pictures.append({**whole, "view": view, "caption": f"{text} ({examples[place].path.name})"})
    return pictures


def _why(overlap: float) -> str:
    return f"its box overlaps by {100 * overlap:.0f} % only" if overlap > 0.1 else "nothing of the kind is there"
