"""Images with boxes, as annotated and as checked: what is wrong with an annotation is named, and what cannot be used is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from deepres.data.decode import SWAPPED, ignore_pillows_warnings, image_formats, orientation_of

PIXEL_SLACK = 1.5  # pixels: readers and drawing tools count pixels from 0 or from 1, so this far outside is no mistake


@dataclass(frozen=True)
class AnnotatedBox:
    """A box as a file has it: pixels from the upper left corner of the image, ``(left, top, right, bottom)``."""

    name: str  # of the class
    corners: tuple[float, float, float, float]
    line: int  # in the annotation's file
    ignored: bool = False  # neither trained on nor counted in an evaluation: VOC's difficult boxes, COCO's crowds


@dataclass(frozen=True)
class Annotated:
    """An image's annotation as a file has it."""

    image: Path
    file: Path  # that the annotation is in
    boxes: tuple[AnnotatedBox, ...]
    line: int = 1  # where the image is named in ``file``
    size: tuple[int, int] | None = None  # (width, height) as annotated; None where it is not


@dataclass(frozen=True)
class Problem:
    """A mistake in an annotation, with its place. It prints as ``FILE:LINE: text``."""

    file: str
    line: int
    kind: str  # "outside", "empty", "unknown class", "missing image", "duplicated", "malformed" or "size"
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, eq=False)
class BoxExample:
    """An image and its boxes, checked."""

    path: Path  # of the image
    size: tuple[int, int]  # (width, height) in pixels, as the image is shown
    boxes: Tensor  # (n, 4) float32: left, top, right, bottom, in pixels
    labels: Tensor  # (n,) int64, indices into the classes
    ignored: Tensor  # (n,) bool


@dataclass(frozen=True, eq=False)
class BoxData:
    """A data set for detection: its classes, its splits and what was wrong with it."""

    name: str
    layout: str  # "Pascal VOC", "COCO" or "YOLO"
    classes: tuple[str, ...]
    train: tuple[BoxExample, ...]
    val: tuple[BoxExample, ...]
    test: tuple[BoxExample, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{len(self.train):,} training, {len(self.val):,} validation and {len(self.test):,} test images"
        return f"{self.name} ({self.layout}): {counts}, {len(self.classes)} classes"

    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind."""
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as it is shown, read from its header. Raises ``OSError`` where there is none that can be read."""
    ignore_pillows_warnings()
    try:
        with Image.open(path, formats=image_formats()) as image:
            turned = orientation_of(image) in SWAPPED
            return (image.height, image.width) if turned else (image.width, image.height)
    except OSError:
        raise
    except Exception as error:  # DecompressionBombError among them
        raise OSError(str(error) or type(error).__name__) from error


def checked(found: Sequence[Annotated], classes: Sequence[str], problems: list[Problem]) -> tuple[BoxExample, ...]:
    """The usable part of ``found``. What is left out or corrected is added to ``problems``."""
    number = {name: index for index, name in enumerate(classes)}
    seen: dict[Path, Annotated] = {}
    examples = []
    for one in found:
        if one.image in seen:
            first = seen[one.image]
            text = f"{one.image.name} was annotated already at {first.file}:{first.line}; this annotation is left out"
            problems.append(Problem(str(one.file), one.line, "duplicated", text))
            continue
        seen[one.image] = one
        try:
            size = image_size(one.image)
        except OSError as error:
            what = "does not exist" if not os.path.exists(one.image) else f"cannot be read ({error})"
            text = f"the image {one.image} {what}; it is left out"
            problems.append(Problem(str(one.file), one.line, "missing image", text))
            continue
        if one.size not in (None, size):
            text = f"says that {one.image.name} is {_by(one.size)} pixels, and the file is {_by(size)}; its boxes are used as they are"
            problems.append(Problem(str(one.file), one.line, "size", text))
        kept = list(_boxes(one, size, number, problems))
        boxes = torch.tensor([corners for corners, _, _ in kept], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label for _, label, _ in kept], dtype=torch.int64)
        ignored = torch.tensor([ignored for _, _, ignored in kept], dtype=torch.bool)
        examples.append(BoxExample(one.image, size, boxes, labels, ignored))
    return tuple(examples)


Corners = tuple[float, float, float, float]


def _boxes(
    one: Annotated, size: tuple[int, int], number: dict[str, int], problems: list[Problem]
) -> Iterator[tuple[Corners, int, bool]]:
    """(corners inside the image, class, ignored) of the usable boxes of an image."""
    width, height = size
    seen: dict[tuple[str, Corners], int] = {}
    for box in one.boxes:

        def report(kind: str, text: str, line: int = box.line) -> None:
            problems.append(Problem(str(one.file), line, kind, text))

        left, top, right, bottom = box.corners
        shown = f"box {_shown(box.corners)}"
        if box.name not in number:
            report("unknown class", f"class {box.name!r} is not one of {', '.join(number)}; the box is left out")
            continue
        if not (right > left and bottom > top):  # also where a number is not a number
            report("empty", f"{shown} has no area; it is left out")
            continue
        inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if not (inside[2] > inside[0] and inside[3] > inside[1]):
            report("outside", f"{shown} lies outside of the image of {_by(size)} pixels; it is left out")
            continue
        if max(abs(a - b) for a, b in zip(box.corners, inside, strict=True)) > PIXEL_SLACK:
            report("outside", f"{shown} reaches out of the image of {_by(size)} pixels; it is cut to {_shown(inside)}")
        if (box.name, inside) in seen:
            report(
                "duplicated", f"{shown} of class {box.name!r} stands in line {seen[box.name, inside]} already; it is left out"
            )
            continue
        seen[box.name, inside] = box.line
        yield inside, number[box.name], box.ignored


def _by(size: tuple[int, int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "of unknown size"


def _shown(corners: Corners) -> str:
    return "(" + ", ".join(f"{value:g}" for value in corners) + ")"
