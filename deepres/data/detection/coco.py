"""COCO: one JSON file a split, in ``annotations`` or, as Roboflow exports it, in the split's own folder of images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepres.data.detection.examples import Annotated, AnnotatedBox, Problem
from deepres.errors import DeepresError

ROBOFLOW = "_annotations.coco.json"
_SPLIT = re.compile(r"(?:^|[_\W\d])(train|val|valid|validation|test)(?=$|[_\W\d])")


def split_named(text: str) -> str:
    """The split that a file's or folder's name tells: "train", "val", "test", or "" for none."""
    match = _SPLIT.search(text.lower())
    return "" if match is None else {"valid": "val", "validation": "val"}.get(match[1], match[1])


def coco_files(folder: Path) -> dict[str, Path]:
    """The annotation file of each split, "" for one that names none."""
    nested = {split_named(path.parent.name): path for path in sorted(folder.glob(f"*/{ROBOFLOW}"))}
    if nested:
        return nested
    found = sorted([*folder.glob("annotations/*.json"), *folder.glob("*.json")])
    boxes = [path for path in found if not path.name.startswith(("captions", "person_keypoints", "panoptic", "image_info"))]
    return {split_named(path.stem): path for path in boxes if _looks_like_coco(path)}


def _looks_like_coco(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return '"images"' in (text := file.read()) and '"annotations"' in text and '"categories"' in text


def read_coco(files: dict[str, Path], problems: list[Problem]) -> tuple[dict[str, list[Annotated]], tuple[str, ...]]:
    """(annotations of each split, classes in the order of their ids in the first file).

    Raises ``DeepresError`` for a file that is no COCO annotation.
    """
    splits: dict[str, list[Annotated]] = {}
    classes: tuple[str, ...] = ()
    for split in sorted(files, key=("train", "val", "test", "").index):
        try:
            text = files[split].read_text(encoding="utf-8")
            content = json.loads(text)
            names = {one["id"]: str(one["name"]) for one in sorted(content["categories"], key=lambda one: one["id"])}
            splits[split] = _annotated(files[split], text, content, names, problems)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DeepresError(f"{files[split]}: not a COCO annotation that can be read ({error!r})") from error
        used = {one["category_id"] for one in content["annotations"] if isinstance(one, dict) and "category_id" in one}
        # Roboflow adds a category, "objects" or the like, that stands above the classes and that no box has
        parents = {one.get("supercategory") for one in content["categories"] if one["id"] in used}
        kept = tuple(name for key, name in names.items() if key in used or name not in parents)
        classes = classes or kept
    return splits, classes


def _annotated(
    path: Path, text: str, content: dict[str, Any], names: dict[int, str], problems: list[Problem]
) -> list[Annotated]:
    lines = _Lines(text)
    boxes: dict[int, list[AnnotatedBox]] = {one["id"]: [] for one in content["images"]}
    for index, one in enumerate(content["annotations"]):
        line = lines.of("annotations", index)
        try:
            left, top, width, height = (float(value) for value in one["bbox"])
            ignored = bool(one.get("iscrowd", 0)) or bool(one.get("ignore", 0))
            name = names.get(one["category_id"], f"id {one['category_id']}")
            box = AnnotatedBox(name, (left, top, left + width, top + height), line, ignored)
            image = boxes.get(one["image_id"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(
                Problem(str(path), line, "malformed", f"annotation {index} cannot be read ({error!r}); it is left out")
            )
            continue
        if image is None:
            wrong = f"annotation {one.get('id', index)} is of image {one['image_id']}, which is not listed; it is left out"
            problems.append(Problem(str(path), line, "missing image", wrong))
        else:
            image.append(box)
    found = []
    places = list(_image_folders(path))
    for index, one in enumerate(content["images"]):
        name = str(one["file_name"])
        image_path = next((place / name for place in places if os.path.isfile(place / name)), places[0] / name)
        size = (int(one["width"]), int(one["height"])) if one.get("width") and one.get("height") else None
        found.append(Annotated(image_path, path, tuple(boxes[one["id"]]), lines.of("images", index), size))
    return found


def _image_folders(path: Path) -> Iterator[Path]:
    """Where the images of an annotation file may be: beside it, or in a folder named as its split is, such as ``train2017``."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    split = path.stem.rpartition("_")[2]
    yield from (root / "images" / split, root / split, root / "images", path.parent, root)


class _Lines:
    """The line of each entry of a JSON document's lists, found by decoding them one by one when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts: dict[str, list[int]] = {}
        self._single = text.count("\n") < 2  # written by a program in one line

    def of(self, key: str, index: int) -> int:
        if self._single:
            return 1
        if key not in self._starts:
            self._starts[key] = list(self._entries(key))
        return self._starts[key][index]

    def _entries(self, key: str) -> Iterator[int]:
        """Lines of the entries of the list ``key`` of the top-level object."""
        decode, space = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")

        def skip(at: int) -> int:
            match = space.match(self.text, at)
            assert match is not None
            return match.end()

        at = skip(self.text.index("{") + 1)
        while self.text[at] != "}":
            name, at = decode(self.text, at)
            at = skip(at)
            if name != key:
                at = skip(decode(self.text, at)[1])
                continue
            at = skip(at + 1)
            line, counted = 1, 0
            while self.text[at] != "]":
                line += self.text.count("\n", counted, at)
                counted = at
                yield line
                at = skip(decode(self.text, at)[1])
            return
