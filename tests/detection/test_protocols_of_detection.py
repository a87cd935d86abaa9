"""Figures by hand, the development kit's formula, and pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from pathlib import Path

import pytest
import torch

from deepres.data.detection import BoxExample
from deepres.detection.coco_protocol import ImageDetections, coco_results, coco_scores, ground_truth
from deepres.detection.voc_protocol import mean_ap, voc_curves

CLASSES = ("cat", "dog", "cow")


def example(boxes: list, labels: list, ignored: list | None = None, name: str = "a.jpg") -> BoxExample:
    skipped = torch.tensor(ignored if ignored is not None else [False] * len(labels), dtype=torch.bool)
    return BoxExample(Path(name), (100, 100), torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long(), skipped)


def detections(boxes: list, labels: list, scores: list) -> ImageDetections:
    return ImageDetections(
        torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long(), torch.tensor(scores).float()
    )


ONE, TWO, THREE, FAR = [0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 90, 90], [60, 0, 70, 10]


def test_by_hand() -> None:
    truth = [example([ONE, TWO, THREE], [0, 0, 0]), example([ONE], [1], name="b.jpg")]
    found = [detections([ONE, FAR, TWO], [0, 0, 0], [0.9, 0.8, 0.7]), detections([ONE, ONE], [1, 1], [0.6, 0.5])]
    cat, dog, cow = voc_curves(truth, found, CLASSES)
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3]) and cat.recall.tolist() == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3]
    )
    # recalls 0, 0.1, 0.2, 0.3 are reached at precision 1; 0.4, 0.5, 0.6 at 2/3; the rest never
    assert cat.ap07() == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert cat.ap12() == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert (dog.ap07(), dog.ap12(), dog.precision.tolist()) == (1, 1, [1, 0.5])  # the second box on one dog is wrong
    assert math.isnan(cow.ap07()) and cow.objects == 0
    assert mean_ap([cat, dog, cow]) == pytest.approx((cat.ap12() + 1) / 2)
    scores = coco_scores(truth, found, CLASSES)
    # at all 101 recalls: 34 at precision 1, 33 at 2/3
    assert scores.by_class["cat"][1] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert scores.by_class["dog"] == pytest.approx((1, 1)) and math.isnan(scores.by_class["cow"][0])
    assert scores.ap50 == pytest.approx((scores.by_class["cat"][1] + 1) / 2)


def test_ignored_objects_count_neither_way() -> None:
    truth = [example([ONE, TWO], [0, 0], [False, True])]
    found = [detections([TWO, TWO, ONE], [0, 0, 0], [0.9, 0.8, 0.7])]
    (cat, *_) = voc_curves(truth, found, CLASSES)
    assert cat.objects == 1 and cat.precision.tolist() == [1] and cat.ap12() == 1
    assert coco_scores(truth, found, CLASSES).ap == pytest.approx(1)


def test_nothing_found_and_nothing_to_find() -> None:
    truth, none = [example([ONE], [0])], [detections([], [], [])]
    assert coco_scores(truth, none, CLASSES).ap50 == 0 and mean_ap(voc_curves(truth, none, CLASSES), 7) == 0
    empty = [example([], [])]
    assert math.isnan(mean_ap(voc_curves(empty, [detections([ONE], [0], [0.5])], CLASSES)))
    assert math.isnan(coco_scores(empty, [detections([ONE], [0], [0.5])], CLASSES).ap)


@pytest.mark.parametrize(
    "truth",
    [
        [example([ONE, [0, 0, 32, 32]], [0, 2])],
        [example([[0, 0, 96, 96], TWO], [1, 0], [False, True])],
        [example([ONE], [0], [True])],
        [example([], [])],
    ],
)
def test_no_detection_scores_as_a_wrong_one_does(truth: list[BoxExample]) -> None:
    """A class or size without objects has no precision, whether something was found or not."""
    nothing = coco_scores(truth, [detections([], [], [])], CLASSES)
    wrong = coco_scores(truth, [detections([FAR], [1], [0.5])], CLASSES)
    assert dataclasses.astuple(nothing)[:12] == pytest.approx(dataclasses.astuple(wrong)[:12], nan_ok=True)
    for name in CLASSES:
        assert nothing.by_class[name] == pytest.approx(wrong.by_class[name], nan_ok=True)


def random_case(seed: int, images: int = 25) -> tuple[list[BoxExample], list[ImageDetections]]:
    """Objects, and detections that are near them, beside them or doubled, some of another class."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    truth, found = [], []
    for number in range(images):
        count = int(uniform(1) * 8)
        corner, side = uniform(count, 2) * 300, 8 + uniform(count, 2) * 150
        boxes, labels = torch.cat((corner, corner + side), 1), (uniform(count) * 3).long()
        truth.append(BoxExample(Path(f"{number}.jpg"), (500, 500), boxes, labels, uniform(count) < 0.15))
        moved = torch.cat((boxes + (uniform(count, 4) - 0.5) * 30, boxes + (uniform(count, 4) - 0.5) * 80, uniform(3, 4) * 200))
        moved = torch.cat((torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:]) + 1), 1)
        guess = torch.cat((labels, labels, torch.zeros(3, dtype=torch.int64)))
        guess = torch.where(uniform(len(guess)) < 0.15, (guess + 1) % 3, guess)
        found.append(ImageDetections(moved, guess, uniform(len(moved))))
    return truth, found


def slow_ap(truth: list[BoxExample], found: list[ImageDetections], label: int, eleven: bool) -> float:
    """VOCevaldet.m, line by line."""
    lines = [
        (s, n, box)
        for n, one in enumerate(found)
        for box, k, s in zip(one.boxes.double().tolist(), one.labels.tolist(), one.scores.tolist(), strict=True)
        if k == label
    ]
    lines.sort(key=lambda line: -line[0])
    seen: set[tuple[int, int]] = set()
    true, false, rec, prec = 0, 0, [], []
    total = sum(int(((t.labels == label) & ~t.ignored).sum()) for t in truth)
    for _, image, box in lines:
        best, where = -math.inf, -1
        for j, other in enumerate(truth[image].boxes.double().tolist()):
            if truth[image].labels[j] != label:
                continue
            wide, tall = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
            if wide > 0 and tall > 0:
                both = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
                value = wide * tall / (both - wide * tall)
                if value > best:
                    best, where = value, j
        if best >= 0.5:
            if truth[image].ignored[where]:
                continue
            if (image, where) not in seen:
                true, _ = true + 1, seen.add((image, where))
            else:
                false += 1
        else:
            false += 1
        rec.append(true / total)
        prec.append(true / (true + false))
    if eleven:
        return sum(max((p for p, r in zip(prec, rec, strict=True) if r >= t / 10), default=0) for t in range(11)) / 11
    mrec, mpre = [0, *rec, 1], [0, *prec, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


@pytest.mark.parametrize("seed", range(3))
def test_voc_against_the_development_kit(seed: int) -> None:
    truth, found = random_case(seed)
    for label, curve in enumerate(voc_curves(truth, found, CLASSES)):
        assert curve.ap07() == pytest.approx(slow_ap(truth, found, label, True), abs=1e-9)
        assert curve.ap12() == pytest.approx(slow_ap(truth, found, label, False), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_coco_against_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = random_case(seed)
    mine = coco_scores(truth, found, CLASSES)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**ground_truth(truth, CLASSES), "info": {}}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(coco_results(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = list(dataclasses.astuple(mine))[:12]
    assert figures == pytest.approx(evaluation.stats.tolist(), abs=1e-9)
    for label, name in enumerate(CLASSES):
        assert mine.by_class[name][0] == pytest.approx(evaluation.eval["precision"][:, :, label, 0, 2].mean(), abs=1e-9)
