"""Folders and zips: tables beside images (Kaggle, Hugging Face, Roboflow, ImageNet's validation list), else a folder per class."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from deepres.data.decode import image_suffixes
from deepres.data.files import Item, Listing, listed
from deepres.data.readers import classes
from deepres.data.readers.table import read_rows
from deepres.data.tree import Tree
from deepres.errors import DeepresError

# tables that say what the images are; others, such as a submission or predictions, are results
_TABLES = re.compile(
    r"(metadata|_classes|labels?|train|training|train_?labels|val|valid|test|data|dataset)\.(csv|tsv|jsonl|txt)"
)


def read(tree: Tree) -> Listing:
    """By tables where no folder holds a class, or where Hugging Face's or Roboflow's name says so; else by folders.

    Raises ``DeepresError`` for boxes (VOC, COCO) and as ``read_rows`` and ``classes.read`` do.
    """
    lowered = {name.lower().rpartition("/")[2] for name in (*tree.files, *tree.folders)}
    if "_annotations.coco.json" in lowered or {"annotations", "jpegimages"} <= lowered:
        raise DeepresError(f"{tree.root}: holds boxes for detection (VOC or COCO), not a class for each image")
    tables = [name for name in tree.files if _TABLES.fullmatch(PurePosixPath(name).name.lower()) and name.count("/") <= 2]
    strong = [name for name in tables if PurePosixPath(name).stem.lower() in ("metadata", "_classes")]
    folders = Counter(name.rpartition("/")[0] for name in tree.images if "/" in name)
    flat = not [name for name in folders if not classes.split_of(name.rpartition("/")[2])] or len(folders) < 2
    chosen = strong or (tables if flat else [])
    if not chosen or not tree.images:
        found = classes.read(tree)
        notes = (*found.notes, f"not read as labels: {', '.join(tables)}") if tables else found.notes
        return Listing(found.classes, found.splits, notes)
    return _by_tables(tree, chosen)


def _by_tables(tree: Tree, tables: list[str]) -> Listing:
    names: dict[str, list[str]] = {}
    for name in tree.images:
        file = PurePosixPath(name)
        for key in {file.name, file.stem}:
            names.setdefault(key, []).append(name)
    found, notes, used = [], [], set()
    for table in tables:
        folder = table.rpartition("/")[0]
        split = classes.split_of(PurePosixPath(table).stem) or classes.split_of(folder.rpartition("/")[2]) or ""

        def find(cell: str, folder: str = folder, split: str = split) -> Item | None:
            cell = cell.replace("\\", "/")
            for base in (folder, *(f for f in sorted(tree.folders) if classes.split_of(f) == split and "/" not in f)):
                start = f"{base}/{cell}".lstrip("/")
                for one in (start, *(start + suffix for suffix in sorted(image_suffixes()))):
                    if one in tree.files:
                        return tree.files[one]
            same = names.get(PurePosixPath(cell).name, [])
            return tree.files[same[0]] if len(same) == 1 else None

        listing = read_rows(f"{tree.root}/{table}", tree.files[table].read(), find, split)
        for part, items in listing.splits.items():
            for item in items:
                if (item.path, item.offset) in used:
                    raise DeepresError(f"{tree.root}: {item.name} has a row in {table} and in another table")
                used.add((item.path, item.offset))
                found.append((part, listing.classes[item.label], item))
        notes += [f"{table}: {note}" for note in listing.notes]
    if len(tree.images) > len(used):
        notes.append(f"{len(tree.images) - len(used)} images have no row in {', '.join(tables)} and are left out")
    return listed(str(tree.root), found, notes, numbers=True)
