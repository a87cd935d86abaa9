"""Folders and zips: tables beside images (Kaggle, Hugging Face, Roboflow, ImageNet), class folders, or labels in file names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from deepres.data.decode import image_suffixes
from deepres.data.files import Item, Listing, listed
from deepres.data.readers import classes, imagenet, names
from deepres.data.readers.classes import split_of, split_within
from deepres.data.readers.lists import split_by_lists
from deepres.data.readers.mats import labels_in_mats
from deepres.data.readers.table import NoLabels, head_of, read_rows
from deepres.data.tree import Tree
from deepres.errors import DeepresError

_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet")
_CLUTTER = "BACKGROUND_Google"  # of Caltech-101: pictures of anything
_AIRCRAFT = re.compile(r"images_(variant|family|manufacturer)_\w+\.txt")  # FGVC: three tables for each split
# words in the names of tables: of those that say what the images are,
_LABELS = frozenset({"metadata", "classes", "label", "labels", "annotations", "groundtruth", "truth", "data", "dataset"})
# of these, those that say it also where the images lie in several folders,
_SURE = frozenset({"metadata", "classes", "groundtruth", "truth"})
# and of tables and texts that are something else
_OTHER = frozenset({"submission", "prediction", "predictions", "result", "results", "readme", "license", "requirements"})
_PACKED = (
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".7z",
    ".rar",
    ".h5",
    ".hdf5",
    ".tfrecord",
    ".tfrecords",
    ".lmdb",
    ".mdb",
    ".parquet",
    ".arrow",
)
_Found = list[tuple[str, str, Item]]  # (split, class, item)


def read(tree: Tree) -> Listing:
    """By tables where no folder holds a class, or where the table's name says so; by class folders; else by file names.

    Raises ``DeepresError`` for other tasks (boxes, masks), for a tree without labels, and as ``read_rows`` does.
    """
    classes.refuse_other_tasks(tree)
    if not tree.images:
        raise DeepresError(_no_images(tree))
    parts, notes = classes.parts(tree)
    found = classes.labelled(tree, parts)
    tables = [name for name in tree.files if _is_table(name)]
    lists = [name for name in tables if _last(name).lower() in imagenet.LISTS]
    tables = [name for name in tables if name not in lists]
    aircraft = {name: match[1] for name in tables if (match := _AIRCRAFT.fullmatch(_last(name)))}
    if "variant" in aircraft.values():
        tables = [name for name in tables if aircraft.get(name) == "variant"]
        notes.append(
            "the classes are the variants of aircraft; remove images_variant_*.txt to tell families or manufacturers apart"
        )
    elif "family" in aircraft.values():
        tables = [name for name in tables if aircraft.get(name) == "family"]
    sure = [name for name in tables if _SURE & _words(name)]
    by_folder = bool(found)
    refused: list[NoLabels] = []
    rows = labels_in_mats(tree, notes) or _by_tables(tree, sure if by_folder else tables, notes, refused)
    if rows:
        found, by_folder = rows, False
    else:
        for part in parts:
            mine = [name for name in lists if split_within(PurePosixPath(name).stem) == (part.split or "val")]
            found += _loose(tree, part, mine, [name for name in tables if name not in sure], by_folder, notes)
    if not found:
        raise DeepresError(
            f"{tree.root}: nothing says of which class its {len(tree.images)} images are; a folder per class is expected "
            f"(CLASS/x.jpg or train/CLASS/x.jpg), or a table of paths and labels{''.join(f'; {one}' for one in (*refused[:1], *notes))}"
        )
    found, used, said = split_by_lists(tree, found)
    if not rows and by_folder:
        clutter = sum(label == _CLUTTER for _, label, _ in found)
        found = [one for one in found if one[1] != _CLUTTER]
        notes += [f"{clutter} images of {_CLUTTER}, which is no class, are left out"] if clutter else []
        unread = [name for name in tables if _LABELS & _words(name) or split_within(PurePosixPath(name).stem)]
        unread = [name for name in unread if name not in used]
        notes += [f"not read as labels: {', '.join(unread[:5])}"] if unread else []
    notes += [*said, *tree.notes]
    notes += [f"hidden and system folders, skipped: {', '.join(tree.hidden[:5])}"] if tree.hidden else []
    notes += [tree.skipped()] if by_folder and tree.skipped() else []
    return listed(str(tree.root), found, notes, numbers=not by_folder)


def _loose(
    tree: Tree, part: classes.TreePart, lists: list[str], tables: list[str], by_folder: bool, notes: list[str]
) -> _Found:
    """The labels of images that lie in no class's folder: by a list or table of their split, else by their names."""
    if not part.loose:
        return []
    place = part.top or "the folder"
    if lists:
        notes.append(f"labels of {place} are taken from {lists[0]}")
        pairs = imagenet.validation_labels(tree, lists[0], part.loose)
        return [(part.split or "val", label, tree.files[name]) for label, name in pairs]
    if by_folder and not part.labelled:
        mine = [name for name in tables if split_within(PurePosixPath(name).stem) == part.split]
        rows = _by_tables(tree, mine, [], [], part.loose)
        if rows:
            notes.append(f"labels of {place} are taken from {', '.join(mine)}")
            return rows
    told = None if by_folder else names.classes_of(part.loose)
    if told is not None:
        notes.append(told[1])
        return [(part.split, label, tree.files[name]) for label, name in zip(told[0], part.loose, strict=True)]
    where = "lie in no class's folder" if part.labelled else "have no label"
    notes.append(f"{len(part.loose)} images{f' of {part.top}' if part.split else ''} {where} and are left out")
    return []


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _words(name: str) -> frozenset[str]:
    """The words of a file's name: ``_classes`` and ``HAM10000_metadata`` give classes and metadata, ``GroundTruth`` groundtruth."""
    return frozenset(word for word in re.split(r"[-_. ]+", PurePosixPath(name).stem.lower()) if word)


def _is_table(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _TABLES or name.count("/") > 3 or _OTHER & _words(name):
        return False
    known = bool(_LABELS & _words(name) or split_within(PurePosixPath(name).stem))
    return known or suffix in (".csv", ".tsv", ".jsonl")


def _no_images(tree: Tree) -> str:
    packed = [name for name in tree.files if name.lower().endswith(_PACKED)]
    if packed:
        return f"{tree.root}: holds no images, but {', '.join(packed[:3])}; extract it and give its folder, or give the file itself"
    what = f": {tree.skipped()}, which are known by their suffixes" if tree.skipped() else ""
    return f"{tree.root}: no images found{what}; a folder per class is expected (CLASS/x.jpg or train/CLASS/x.jpg), or tar shards of such"


def _by_tables(
    tree: Tree, tables: Iterable[str], notes: list[str], refused: list[NoLabels], images: Iterable[str] | None = None
) -> _Found:
    """The rows of tables; those without a column of labels are put into ``refused``, and named among ``notes`` where others have one."""
    images = tree.images if images is None else images
    by_name: dict[str, list[str]] = {}
    for name in images:
        file = PurePosixPath(name)
        for key in {file.name, file.stem}:
            by_name.setdefault(key, []).append(name)
    found: _Found = []
    used: set[tuple[str, int]] = set()
    read: list[str] = []
    said: list[str] = []
    for table in tables:
        folder = table.rpartition("/")[0]
        split = split_within(PurePosixPath(table).stem) or split_of(_last(folder)) or ""

        def find(cell: str, folder: str = folder, split: str = split) -> Item | None:
            cell = cell.replace("\\", "/")
            for base in (
                folder,
                *(f for f in sorted(tree.folders) if classes.split_of(_last(f)) == split and f.count("/") < 2),
            ):
                start = f"{base}/{cell}".lstrip("/").replace("/./", "/")
                for one in (start, *(start + suffix for suffix in sorted(image_suffixes()))):
                    if one in tree.files:
                        return tree.files[one]
            same = by_name.get(PurePosixPath(cell).name, [])
            return tree.files[same[0]] if len(same) == 1 else None

        content = tree.files[table].read()
        if not (_LABELS & _words(table) or split_within(PurePosixPath(table).stem)) and not head_of(table, content, find):
            continue  # of an unknown name, and not of these images
        try:
            listing = read_rows(f"{tree.root}/{table}", content, find, split)
        except NoLabels as error:
            refused.append(error)
            continue
        for part, items in listing.splits.items():
            for item in items:
                if (item.path, item.offset) in used:
                    raise DeepresError(f"{tree.root}: {item.name} has a row in {table} and in another table")
                used.add((item.path, item.offset))
                found.append((part, listing.classes[item.label], item))
        read.append(table)
        said += [f"{table}: {note}" for note in listing.notes]
    left = len(tree.images) - len(used)
    if read:
        notes += said
        notes += [f"not read, for want of labels: {one.table.removeprefix(f'{tree.root}/')}" for one in refused]
        notes += [f"{left} images have no row in {', '.join(read)} and are left out"] if left else []
    return found
