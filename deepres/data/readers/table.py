"""A table of images and labels: FILE.csv, .tsv or metadata.jsonl with a path, a label, and perhaps a split, in each row."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from deepres.data.decode import image_suffixes, is_image_name
from deepres.data.files import Item, Listing, listed
from deepres.data.readers.classes import split_of, split_within
from deepres.data.tree import is_system
from deepres.errors import DeepresError
from deepres.paths import user_path

PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "filepaths",
    "image",
    "image_id",
    "imageid",
    "image_name",
    "image_path",
    "img",
    "img_name",
    "id",
    "id_code",
    "name",
)
LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
    "species",
    "breed",
    "diagnosis",
    "dx",
    "classid",
    "class_id",
    "y",
)
_SPLITS = ("split", "set", "subset", "data set", "dataset", "fold")
BOXES = frozenset({"xmin", "x_min", "xmax", "bbox", "bboxes", "box", "x1"})
Rows = list[tuple[int, list[str]]]  # (line number, cells)


class NoLabels(DeepresError):
    """A table without a column of paths or of labels."""

    def __init__(self, table: str, text: str) -> None:
        super().__init__(f"{table}: {text}")
        self.table = table


def read(path: Path) -> Listing:
    """The listing of FILE.csv, FILE.tsv or FILE.jsonl. Paths are relative to the file's own folder, or to one right below it.

    Raises ``DeepresError`` that names the line of the first bad row.
    """
    folder = path.parent
    split = split_within(path.stem)
    inner = sorted(one for one in folder.iterdir() if one.is_dir() and not is_system(one.name))
    mine = [one for one in inner if split_of(one.name) == split] if split else []

    def at(place: Path, cell: str) -> Item | None:
        base = place / user_path(cell)
        for one in (base, place / cell.replace("\\", "/"), *(Path(f"{base}{suffix}") for suffix in sorted(image_suffixes()))):
            if is_image_name(one.name) and os.path.isfile(one):  # which says no to a text that is too long for a path
                return Item(str(one), -1)
        return None

    def find(cell: str) -> Item | None:
        for places in ([folder], mine, inner):
            found = [item for place in places if (item := at(place, cell))]
            if len(found) == 1:  # of two images nothing says which one is meant
                return found[0]
        parts = PurePosixPath(cell.replace("\\", "/")).parts
        ends = ("/".join(parts[i:]) for i in range(1, len(parts)))  # the path on another machine
        return next((item for end in ends if (item := at(folder, end))), None)

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DeepresError(f"{path}: cannot be read ({error.strerror})") from error
    return read_rows(str(path), content, find)


def read_rows(name: str, content: bytes, find: Callable[[str], Item | None], split: str = "") -> Listing:
    """The listing of a table's content; ``find`` gives the image of a path, ``split`` is for rows that name none."""
    head, rows = _cells(name, content)
    if not rows:
        raise DeepresError(f"{name}: has no rows")
    where, label, part = _columns(name, head, rows, find)
    found: list[tuple[str, str, Item]] = []
    seen: dict[tuple[str, int], tuple[str, int]] = {}
    repeated = 0
    for line, cells in rows:
        if len(cells) <= max(where, *label, part if part is not None else 0):
            raise DeepresError(f"{name}:{line}: has {len(cells)} cells, too few for a path and a label")
        item, text = find(cells[where].strip()), _label(name, line, head, cells, label)
        if item is None:
            raise DeepresError(f"{name}:{line}: there is no image {cells[where]!r}")
        if not text:
            raise DeepresError(f"{name}:{line}: the label is empty")
        asked = split_of(cells[part].strip()) if part is not None else split
        if asked is None:
            raise DeepresError(f"{name}:{line}: {cells[part or 0]!r} is no split; write train, val or test")
        before = seen.setdefault((item.path, item.offset), (text, line))
        if before[0] != text:
            raise DeepresError(f"{name}:{line}: {cells[where]!r} is {text!r} here and {before[0]!r} in line {before[1]}")
        if before[1] != line:
            repeated += 1
            continue
        found.append((asked, text, item))
    found = _whole_numbers(found)
    texts = {label for _, label, _ in found}
    if len(texts) > 20 and 2 * len(texts) > len(found) and all(_is_fraction(text) for text in texts):
        raise DeepresError(f"{name}: its labels are numbers with fractions, not classes")
    notes = [f"{repeated} rows repeat an image and are left out"] if repeated else []
    several = sorted(text for text in texts if len(words := _words_of(text)) > 1 and words & texts)
    if several:
        notes.append(
            f"{len(several)} classes look like several labels of one image, such as {several[0]!r}; each is taken as a class"
        )
    return listed(name, found, notes, numbers=True)


def _words_of(label: str) -> set[str]:
    return {word for word in re.split(r"[\s,;|]+", label) if word}


def _whole_numbers(found: list[tuple[str, str, Item]]) -> list[tuple[str, str, Item]]:
    """Labels 0.0, 1.0, ..., as pandas writes whole numbers of a column with gaps, without their fractions."""
    if not all(re.fullmatch(r"\d+\.0+", label) for _, label, _ in found):
        return found
    return [(split, label.partition(".")[0], item) for split, label, item in found]


def head_of(name: str, content: bytes, find: Callable[[str], Item | None]) -> bool:
    """Return whether a table has a column of paths whose first one is an image."""
    try:
        head, rows = _cells(name, content)
        return bool(rows) and find(rows[0][1][_columns(name, head, rows, find)[0]].strip()) is not None
    except (DeepresError, IndexError):
        return False


def _cells(name: str, content: bytes) -> tuple[list[str] | None, Rows]:
    """(header or None, rows with their line numbers; of a Parquet file, with their numbers from 0)."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet(name, content)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # "Unicode text" of Excel
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="surrogateescape")
    if suffix == ".json":
        return _json(name, text)
    if suffix == ".jsonl":
        rows: Rows = []
        head: list[str] = []
        for line, one in enumerate(text.split("\n"), 1):  # within a text, JSON allows the other characters that end lines
            try:
                record = json.loads(one) if one.strip() else None
                if record is not None and not isinstance(record, dict):
                    raise TypeError("not a JSON object")
                if record is not None:
                    head = head or list(record)
                    rows.append((line, [str(record[key]) for key in head]))
            except (ValueError, KeyError, TypeError) as error:
                raise DeepresError(f"{name}:{line}: not a record with the columns of the first ({error})") from error
        return [key.lower() for key in head], rows
    first = text.partition("\n")[0]
    mark = max("\t;,", key=first.count) if any(c in first for c in "\t;,") else " "
    if mark == " " and not _is_head(first.split()):
        return None, _spaced(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DeepresError(f"{name}:{reader.line_num}: {error}") from error
    if rows and _is_head(rows[0][1]):
        return [cell.strip().lower() for cell in rows[0][1]], rows[1:]
    return None, rows


def _is_head(cells: list[str]) -> bool:
    """Return whether a row is a header: it has the name of a column and no image's."""
    known = {*PATHS, *LABELS, *_SPLITS}
    return any(cell.strip().lower() in known for cell in cells) and not any(map(is_image_name, cells))


def _spaced(text: str) -> Rows:
    """Rows of a path and a label that a space divides; with spaces in either, the path ends at its suffix, else at the first space."""
    rows: Rows = []
    for line, one in enumerate(text.splitlines(), 1):
        cells = one.split()
        ends = [i for i, cell in enumerate(cells) if is_image_name(cell)]
        if ends and len(cells) > 2:
            cells = [" ".join(cells[: ends[0] + 1]), *_last_cells(cells[ends[0] + 1 :])]
        elif len(cells) > 2:
            cells = [cells[0], *_last_cells(cells[1:])]
        if cells:
            rows.append((line, cells))
    return rows


def _last_cells(cells: list[str]) -> list[str]:
    """A label of several words, and perhaps a split; numbers stay cells of their own, as boxes and several labels are."""
    if all(re.fullmatch(r"-?[\d.]+", cell) for cell in cells):
        return cells
    split = split_of(cells[-1]) if len(cells) > 1 else None
    return [" ".join(cells[:-1]), cells[-1]] if split else [" ".join(cells)]


def _json(name: str, text: str) -> tuple[list[str], Rows]:
    """{path: label}, or [{"file_name": path, "label": label}, ...]; rows are numbered from 1 on."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DeepresError(f"{name}: not JSON ({error})") from error
    if isinstance(content, dict) and content and all(isinstance(value, (str, int)) for value in content.values()):
        return ["path", "label"], [(i, [path, str(label)]) for i, (path, label) in enumerate(content.items(), 1)]
    if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
        raise NoLabels(name, "neither a label for each path nor a list of records of path and label")
    head = list(content[0])
    missing = next((i for i, one in enumerate(content, 1) if not set(head) <= set(one)), None)
    if missing:
        raise DeepresError(f"{name}:{missing}: not a record with the columns of the first")
    return [key.lower() for key in head], [(i, [str(one[key]) for key in head]) for i, one in enumerate(content, 1)]


def _parquet(name: str, content: bytes) -> tuple[list[str], Rows]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DeepresError(f"{name}: Parquet files need pyarrow; pip install 'deepres[arrow]'") from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DeepresError(f"{name}: not a whole Parquet file ({error})") from error
    rows = ([str(value) for value in record.values()] for record in table.to_pylist())
    return [column.lower() for column in table.column_names], list(enumerate(rows))


def _columns(
    name: str, head: list[str] | None, rows: Rows, find: Callable[[str], Item | None]
) -> tuple[int, list[int], int | None]:
    """The columns of the path, of the label (several: one for each class, with 0 or 1), and of the split if there is one."""
    width = len(head or rows[0][1])
    if head is None:
        if width not in (2, 3):
            raise NoLabels(name, f"has {width} columns and no header that names path and label")
        if not any(find(cells[0].strip()) for _, cells in rows[:5]):
            raise NoLabels(name, f"has no header, and there is no image {rows[0][1][0]!r}")
        return 0, [1], 2 if width == 3 else None
    part = next((head.index(word) for word in _SPLITS if word in head), None)
    named = [head.index(word) for word in PATHS if word in head]
    where = next((c for c in named if len(rows[0][1]) > c and find(rows[0][1][c].strip())), named[0] if named else None)
    if where is None:
        raise NoLabels(name, f"no column is called path, file_name or image; there are {', '.join(head[:20])}")
    if len(BOXES & set(head)) > 0:
        raise DeepresError(f"{name}: holds boxes for object detection ({', '.join(head[:10])}), not a class for each image")
    rest = [c for c in range(width) if c not in (where, part)]
    label = next((c for word in LABELS for c in rest if head[c] == word), rest[0] if len(rest) == 1 else None)
    if label is not None:
        return where, [label], part
    if len(rest) > 1 and all(
        cells[c].strip() in ("0", "1", "0.0", "1.0") for _, cells in rows[:50] for c in rest if c < len(cells)
    ):
        return where, rest, part
    raise NoLabels(name, f"no column is called label; there are {', '.join(head[:20])}")


def _label(name: str, line: int, head: list[str] | None, cells: list[str], columns: list[int]) -> str:
    if len(columns) == 1:
        return cells[columns[0]].strip()
    on = [c for c in columns if cells[c].strip() in ("1", "1.0")]
    if len(on) != 1 or head is None:
        raise DeepresError(f"{name}:{line}: has {len(on)} labels; an image has one class here")
    return head[on[0]]


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False
