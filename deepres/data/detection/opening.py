"""``open_boxes``: a folder of images with boxes, whatever its layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deepres.data.detection.coco import coco_files, read_coco
from deepres.data.detection.examples import Annotated, BoxData, Problem, checked
from deepres.data.detection.voc import is_voc, read_voc
from deepres.data.detection.yolo import read_yolo, yolo_file
from deepres.data.loader import seeded
from deepres.data.splits import SPLIT_SEED, TEST_SHARE
from deepres.errors import DeepresError
from deepres.paths import name_of, user_path

VAL_SHARE = 0.15
QUOTED_PROBLEMS = 5  # problems that an error quotes


def open_boxes(folder: str | Path, *, classes: Sequence[str] | None = None, strict: bool = False) -> BoxData:
    """Open a data set for detection; nothing in it is changed. Layouts are recognised by their files:

    - Pascal VOC: ``Annotations/*.xml``, ``JPEGImages``, splits in ``ImageSets/Main``;
    - COCO: JSON files in ``annotations``, or ``_annotations.coco.json`` in each split's folder;
    - YOLO: a ``data.yaml`` with ``names`` and ``train``, or the YAML file itself as ``folder``.

    A missing validation or test split is split off the training images, by a fixed seed. ``classes``: the names in their order, for
    Pascal VOC, which has no list of them [those of the training images, in alphabetical order].

    What is wrong with an annotation is named with file and line in ``problems``: boxes that reach out of the image are cut, boxes
    without area, of unknown classes or given twice are left out, and so are images that are missing.

    Raises ``DeepresError`` where no layout is recognised or nothing is left to train on; with ``strict``, for any problem.
    """
    path = user_path(folder)
    if not path.exists():
        raise DeepresError(f"{folder}: there is no such folder; give the one that holds Annotations, annotations or data.yaml")
    problems: list[Problem] = []
    layout, found, names = _read(path, problems)
    if not names:
        first = found.get("train") or found.get("") or next(iter(found.values()))
        names = tuple(sorted({box.name for one in first for box in one.boxes}))
    names = tuple(classes) if classes else names
    if not names:
        raise DeepresError(f"{folder}: no annotation has a box, so there are no classes to detect")
    splits, notes = _complete(found)
    train, val, test = (checked(splits[name], names, problems) for name in ("train", "val", "test"))
    data = BoxData(name_of(path), layout, names, train, val, test, tuple(problems), notes)
    if strict and problems:
        raise DeepresError(f"{folder}: {problem_report(data, QUOTED_PROBLEMS)}\n(--strict stops at problems in annotations)")
    if not any(len(one.boxes) for split in (train, val, test) for one in split):
        raise DeepresError(f"{folder}: no usable box in any image\n{problem_report(data, QUOTED_PROBLEMS)}")
    return data


def problem_report(data: BoxData, most: int) -> str:
    """The number of problems of each kind, and the first ``most`` of them with file and line; empty where there are none."""
    if not data.problems:
        return ""
    counts = ", ".join(f"{count} {kind}" for kind, count in data.problem_counts().items())
    lines = [f"{len(data.problems)} problems in the annotations ({counts}):", *map(str, data.problems[:most])]
    if len(data.problems) > most:
        lines.append(f"... and {len(data.problems) - most} more")
    return "\n".join(lines)


def _read(path: Path, problems: list[Problem]) -> tuple[str, dict[str, list[Annotated]], tuple[str, ...]]:
    """(layout, annotations of each split, classes where the layout names them)."""
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return "YOLO", *read_yolo(path, problems)
    if path.is_file() and path.suffix == ".json":
        return "COCO", *read_coco({"": path}, problems)
    if is_voc(path):
        return "Pascal VOC", read_voc(path, problems), ()
    yaml_path = yolo_file(path)
    if yaml_path is not None:
        return "YOLO", *read_yolo(yaml_path, problems)
    files = coco_files(path)
    if files:
        return "COCO", *read_coco(files, problems)
    raise DeepresError(
        f"{path}: no boxes are found here; expected are Annotations/*.xml (Pascal VOC), annotations/*.json or "
        "*/_annotations.coco.json (COCO), or data.yaml (YOLO)"
    )


def _complete(found: dict[str, list[Annotated]]) -> tuple[dict[str, list[Annotated]], tuple[str, ...]]:
    """({"train", "val", "test"}, notes): splits that are missing come off the training images."""
    splits, notes = dict(found), []
    unnamed = splits.pop("", [])
    if unnamed and "train" not in splits:
        splits["train"] = unnamed
    splits.setdefault("train", [])
    for part, share, word in (("test", TEST_SHARE, "test"), ("val", VAL_SHARE, "validation")):
        if part in splits:
            continue
        train = splits["train"]
        count = round(len(train) * share)
        order = torch.randperm(len(train), generator=seeded(SPLIT_SEED)).tolist()
        off = set(order[:count])
        splits[part] = [one for index, one in enumerate(train) if index in off] or train
        splits["train"] = [one for index, one in enumerate(train) if index not in off]
        if off:
            notes.append(f"{len(off)} {word} images were split off the training images, which name no {word} split")
        else:
            notes.append(f"too few images to split: the {word} images are the training images, not new ones")
    return splits, tuple(notes)
