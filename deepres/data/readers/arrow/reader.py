"""Data sets of Parquet and Arrow files: a single file, a folder from the Hugging Face hub, and what ``save_to_disk`` wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deepres.data.decode import is_image_name
from deepres.data.files import Item, Listing, listed
from deepres.data.readers.arrow.features import Columns, choose_columns
from deepres.data.readers.arrow.rows import Column, locate_images, record_batches, stream
from deepres.data.readers.classes import split_of
from deepres.data.tree import is_system
from deepres.errors import DeepresError

SUFFIXES = (".parquet", ".arrow")
_Found = list[tuple[str, str, Item]]  # (split, class, item)


def is_arrow_folder(folder: Path) -> bool:
    """Return whether a folder holds Parquet or Arrow files, and no images that these may only describe."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    tables = False
    for path in _below(folder):
        if is_image_name(path.name):
            return False
        tables = tables or _is_table(path.name)
    return tables


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith("cache-")  # cache-*.arrow: results of ``map``


def _below(folder: Path, depth: int = 4) -> Iterator[Path]:
    """Files down to the depth at which data sets keep their tables, one folder after the other."""
    with os.scandir(folder) as entries:
        found = sorted(
            (entry for entry in entries if not is_system(entry.name)), key=lambda entry: (entry.is_dir(), entry.name)
        )
    for entry in found:
        if not entry.is_dir():
            yield Path(entry.path)
        elif depth > 1:
            yield from _below(Path(entry.path), depth - 1)


def read(path: Path) -> Listing:
    """The listing of one file.

    Raises ``DeepresError`` as ``read_folder`` does.
    """
    return _listing(str(path), [("", path)])


def read_folder(folder: Path) -> Listing:
    """The listing of a folder's files. A file's split is a word of its name, of its folder's name, or stands in ``state.json``.

    Raises ``DeepresError`` that names file and row for an image or label that is missing or out of range, and where the folder holds
    several configurations, or pyarrow is not installed.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        saved = [(split_of(name) or "", file) for name in splits for file in _saved(folder / name)]
        return _listing(str(folder), saved)
    if (folder / "state.json").is_file():
        split = split_of(str(_json(folder / "state.json").get("_split"))) or ""
        return _listing(str(folder), [(split, file) for file in _saved(folder)])
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in _below(folder):
        if _is_table(path.name):
            parts = path.relative_to(folder).parts
            outer = [part for part in parts[:-1] if part != "data" and not _split_in([part])]
            found.setdefault("/".join(outer), []).append((_split_in([path.stem, *reversed(parts[:-1])]), path))
    if len(found) > 1:
        names = ", ".join(repr(name or ".") for name in found)
        raise DeepresError(f"{folder}: holds several configurations, {names}; give the folder of one of them")
    return _listing(str(folder), next(iter(found.values())))


def _split_in(names: Iterable[str]) -> str:
    words = (word for name in names for word in (name, *re.split(r"[-_. ]", name)))
    return next((split for word in words if (split := split_of(word))), "")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DeepresError(f"{path}: cannot be read ({error})") from error


def _saved(folder: Path) -> list[Path]:
    """The files of one data set that ``save_to_disk`` wrote, in order."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DeepresError(f"{folder}: holds a selection of rows that was not applied; save it again after flatten_indices()")
    try:
        files = [folder / one["filename"] for one in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DeepresError(f"{folder / 'state.json'}: names no data files") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DeepresError(f"{folder}: the file {missing[0]}, which state.json names, is missing")
    return files


def _listing(name: str, files: list[tuple[str, Path]]) -> Listing:
    try:
        import pyarrow as _  # noqa: F401
    except ImportError as error:
        raise DeepresError(f"{name}: Parquet and Arrow files need pyarrow; pip install 'deepres[arrow]'") from error
    found: _Found = []
    notes: list[str] = []
    first: Columns | None = None
    hidden = copied = 0
    for split, path in files:
        schema, source = stream(path)
        columns = choose_columns(path, schema)
        first = first or columns
        if columns != first:
            raise DeepresError(f"{path}: its columns or class names differ from those of {files[0][1]}")
        where = locate_images(path, source, columns.image)
        copied += where.copied
        hidden += _rows(path, split, columns, where, record_batches(path, source, columns.label), found)
    if first is None:
        raise DeepresError(f"{name}: holds no data files")
    if first.others:
        notes.append(f"images are the column {first.image!r} and labels {first.label!r}; not read: {', '.join(first.others)}")
    if hidden:
        notes.append(f"{hidden} rows have the label -1, which means none, and are left out")
    if copied:
        notes.append(
            f"{copied / 1e6:.1f} MB of images were copied from Parquet into the cache folder, from which they are read"
        )
    return listed(name, found, notes, numbers=True, classes=first.names)


def _rows(path: Path, split: str, columns: Columns, where: Column, labels: Iterable[Any], found: _Found) -> int:
    """Append the labelled rows to ``found``. Returns how many have no label. Rows are counted from 0, as ``datasets`` does."""
    hidden, row = 0, 0
    text = _text(path, columns.names)
    for piece in labels:
        for label in piece.to_pylist():
            if label == -1 and columns.names is not None:
                hidden += 1
            else:
                found.append((split, text(row, label), _item(path, row, where)))
            row += 1
    return hidden


def _text(path: Path, names: tuple[str, ...] | None) -> Callable[[int, Any], str]:
    def text(row: int, label: Any) -> str:
        if label is None or label == "":
            raise DeepresError(f"{path}: row {row}: the label is missing")
        if names is None or isinstance(label, str):
            return str(label)
        if not 0 <= label < len(names):
            raise DeepresError(f"{path}: row {row}: the label is {label}, and there are {len(names)} class names")
        return names[int(label)]

    return text


def _item(path: Path, row: int, where: Column) -> Item:
    if where.start[row] >= 0:
        return Item(where.path, -1, int(where.start[row]), int(where.length[row]), shown=f"{path}:row {row}")
    own = where.paths[row]
    if not own:
        raise DeepresError(f"{path}: row {row}: the image is missing")
    for base in (path.parent, path.parent.parent, Path()):
        if os.path.isfile(base / own):
            return Item(str(base / own), -1)
    raise DeepresError(f"{path}: row {row}: holds no bytes, and there is no file {own!r}")
