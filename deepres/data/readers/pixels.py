"""Tables of the pixels themselves: label,pixel0,... as Kaggle packs MNIST and sign language, and FER-2013."""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from deepres.data.decode import is_image_name
from deepres.data.readers.arrays import Arrays, listing
from deepres.data.readers.classes import split_of, split_within
from deepres.data.readers.table import LABELS
from deepres.data.tree import is_system
from deepres.errors import DeepresError

_LABELS = (*LABELS, "emotion")
_PIXEL = re.compile(r"(pixel|px|p|x)?_?\d+(x\d+)?", re.IGNORECASE)
_USAGE = {"publictest": "val", "privatetest": "test"}  # FER-2013's names of its splits


def is_pixels(path: Path) -> bool:
    """Return whether a file is a table of pixels, by its head."""
    return path.suffix.lower() == ".csv" and path.is_file() and _pixel_columns(_head(path)) is not None


def is_pixels_folder(folder: Path) -> bool:
    """Return whether a folder holds tables of pixels and no images."""
    found = False
    for path in _below(folder):
        if is_image_name(path.name):
            return False  # at the first one: a set of class folders may hold a million
        found = found or is_pixels(path)
    return found


def read(path: Path) -> Arrays:
    """The images of one table.

    Raises ``DeepresError`` that names the line of a row that is not a label and pixels of 0 to 255.
    """
    return _read(str(path), [path])


def read_folder(folder: Path) -> Arrays:
    """The images of all tables of a folder; the split is a word of a file's name."""
    return _read(str(folder), sorted(path for path in _below(folder) if is_pixels(path)))


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, in no order."""
    for path in chain(folder.glob("*"), folder.glob("*/*")):
        if path.is_file() and not any(map(is_system, path.relative_to(folder).parts)):
            yield path


def _head(path: Path) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline(1 << 20)
        return [cell.strip().lower() for cell in next(csv.reader([first]), [])]
    except (OSError, csv.Error):
        return []


def _pixel_columns(head: list[str]) -> list[int] | None:
    """The columns of pixels: one of all of them, or one for each."""
    if "pixels" in head:
        return [head.index("pixels")]
    columns = [i for i, name in enumerate(head) if _PIXEL.fullmatch(name)]
    return columns if len(columns) >= 16 and len(head) - len(columns) <= 2 else None


def _read(name: str, files: list[Path]) -> Arrays:
    splits: dict[str, tuple[list[np.ndarray], list[str]]] = {}
    notes: list[str] = []
    for path in files:
        head = _head(path)
        columns = _pixel_columns(head) or []
        label = next((head.index(word) for word in _LABELS if word in head), None)
        if label is None:
            notes.append(f"not read, for want of labels: {path.name}")
            continue
        usual = split_within(path.stem) or "" if len(files) > 1 else ""
        part = next((head.index(word) for word in ("usage", "split") if word in head), None)
        for line, cells in _rows(path):
            split = usual if part is None else _USAGE.get(cells[part].lower(), split_of(cells[part]) or "")
            images, labels = splits.setdefault(split, ([], []))
            images.append(_pixels(path, line, cells, columns))
            labels.append(cells[label].strip())
    if not splits:
        raise DeepresError(f"{name}: no column is called label; {'; '.join(notes)}")
    count = {len(image) for images, _ in splits.values() for image in images}
    shape = _shape(name, count)
    if len(shape) == 3:
        notes.append(
            f"rows of {shape[0] * shape[1] * 3:,} pixels are taken as {shape[0]} x {shape[1]} pixels of red, green and blue"
        )
    numbers = all(text.isdecimal() for _, labels in splits.values() for text in labels)
    found = {
        split: (np.stack(images).reshape(-1, *shape), np.array(labels).astype(np.int64 if numbers else np.str_))
        for split, (images, labels) in splits.items()
    }
    return listing(name, found, notes=tuple(notes))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 24))  # a cell of FER-2013 holds an image
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            width = len(next(reader))
            for cells in reader:
                if cells and len(cells) != width:
                    raise DeepresError(f"{path}:{reader.line_num}: has {len(cells)} cells and the head {width}")
                if cells:
                    yield reader.line_num, cells
    except (OSError, csv.Error) as error:
        raise DeepresError(f"{path}: cannot be read ({error})") from error


def _pixels(path: Path, line: int, cells: list[str], columns: list[int]) -> np.ndarray:
    given = cells[columns[0]].split() if len(columns) == 1 else [cells[i] for i in columns]
    try:
        if "." not in given[0]:
            return np.array(given, dtype=np.uint8)
        values = np.array(given, dtype=np.float64)
        whole = (values >= 0) & (values <= 255) & (values == values.round())
        if not whole.all():
            raise ValueError(f"{given[int(whole.argmin())]} is none; write 255 times a value of 0 to 1")
        return values.astype(np.uint8)
    except (ValueError, OverflowError, IndexError) as error:
        raise DeepresError(f"{path}:{line}: pixels are whole numbers from 0 to 255 ({error})") from error


def _shape(name: str, counts: set[int]) -> tuple[int, ...]:
    count = counts.pop() if len(counts) == 1 else 0
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        if side and side * side * channels == count:
            return (side, side) if channels == 1 else (side, side, 3)
    raise DeepresError(f"{name}: its rows have {count or 'different numbers of'} pixels, which is no square of grey or colour")
