"""Each backbone of the comparison trains and predicts, and the paper's recipes run on Pascal VOC and COCO folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from run_helpers import torchrun
from tiny_detector import NarrowVgg

from deepres.data.detection import open_boxes
from deepres.detection import DetectRun, detector, load_detector, train_detector
from deepres.detection.recipe import detect_recipe

SMALL = {"samples": 16, "proposals": (50, 20)}


def few_steps(recipe: str, steps: int, **detector):
    made = detect_recipe(recipe)
    return dataclasses.replace(
        made, epochs=None, iterations=steps, batch=2, detector={**made.detector, **SMALL, "size": 64, "longest": 64, **detector}
    )


@pytest.mark.parametrize(
    ("net", "form", "width"),
    [("plain18", "fpn", 0.25), ("efficientnet-lite0", "fpn", 1.0), ("vgg", "c4", 1.0)],
)
def test_backbones_train_and_predict(net: str, form: str, width: float, shapes: Path) -> None:
    data = open_boxes(shapes)
    data = dataclasses.replace(data, val=data.val[:2], test=data.test[:2])
    fields = {"channels": 16, "width": 32} if form == "fpn" else {}
    run = DetectRun(net, str(shapes), form, recipe=few_steps("small", 3, **fields), width=width, speed="float32")
    vgg = detector(NarrowVgg(), data.classes, form, **SMALL, size=64, longest=64) if net == "vgg" else None
    result = train_detector(run, data=data, show=False, model=vgg)
    assert result.history[-1].step == 3 and result.history[-1].loss > 0
    assert all(bool(one.isfinite().all()) for one in result.model.state_dict().values())
    with torch.inference_mode():
        (found,) = result.model([torch.rand(3, 48, 64)])
    assert set(found) == {"boxes", "labels", "scores"}


def test_packaged_weights_are_pretrained_weights() -> None:
    assert DetectRun("efficientnet-lite0", "data").resolved().recipe.name == "finetune"
    assert DetectRun("resnet18", "data").resolved().recipe.name == "small"
    assert DetectRun("hf:owner/name", "data").resolved().recipe.name == "finetune"
    for net in ("resnet18", "efficientnet-lite0"):
        assert DetectRun(net, "data", weights="none").resolved().recipe.name == "small"


def test_the_paper_s_voc_recipe_runs(shapes: Path, tmp_path: Path) -> None:
    run = DetectRun("resnet18", str(shapes), "c4", recipe=few_steps("paper-voc", 3), width=0.25, out=str(tmp_path / "voc"))
    result = train_detector(run, show=False)
    assert (
        result.history[-1].lr == pytest.approx(1e-3) and 0 <= result.test.voc07 <= 1
    )  # before the milestone, three quarters on
    assert load_detector(tmp_path / "voc").config.anchors == (128.0, 256.0, 512.0)


def as_coco(shapes: Path, out: Path) -> Path:
    """The rectangles as a COCO folder."""
    data = open_boxes(shapes)
    (out / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        images, boxes = [], []
        for number, one in enumerate(getattr(data, split)[:6]):
            (out / f"{split}2017").mkdir(exist_ok=True)
            (out / f"{split}2017" / one.path.name).write_bytes(one.path.read_bytes())
            images.append({"id": number, "file_name": one.path.name, "width": one.size[0], "height": one.size[1]})
            for corners, label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
                left, top, right, bottom = corners
                box = [left, top, right - left, bottom - top]
                boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, "bbox": box, "iscrowd": 0})
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]}
        (out / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return out


def test_the_paper_s_coco_recipe_runs_in_two_processes(shapes: Path, tmp_path: Path) -> None:
    folder = as_coco(shapes, tmp_path / "coco")
    script = tmp_path / "coco.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[3])\n"
        "from test_backbones_of_detectors import few_steps\nfrom deepres.detection import DetectRun, train_detector\n"
        "run = DetectRun('resnet18', sys.argv[1], 'c4', recipe=few_steps('paper-coco', 2), width=0.25, out=sys.argv[2])\n"
        "train_detector(run, show=False)\n"
    )
    torchrun(str(script), str(folder), str(tmp_path / "run"), str(Path(__file__).parent), PYTHONWARNINGS="ignore")
    saved = json.loads((tmp_path / "run/result.json").read_text())
    assert saved["test_images"] == 6 and load_detector(tmp_path / "run").config.anchors == (64.0, 128.0, 256.0, 512.0)
