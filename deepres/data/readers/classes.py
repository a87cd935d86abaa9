"""A folder per class: CLASS/x.jpg, or SPLIT/CLASS/x.jpg."""

from __future__ import annotations

import re
from collections import Counter

from deepres.data.files import Listing, listed
from deepres.data.tree import Tree
from deepres.errors import DeepresError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT = re.compile(rf"({'|'.join(_WORDS)})(?:[ _-]?(?:set|images|imgs|data|split|\d{{4}}))?", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` for a folder's name such as Training, valid, dev, test_set or val2017; else None."""
    found = _SPLIT.fullmatch(name)
    return _WORDS[found[1].lower()] if found else None


def tops(tree: Tree) -> tuple[list[tuple[str, str]], list[str]]:
    """([(split, prefix)], folders beside the splits). Folders that hold one folder and nothing else are passed through."""
    below = _children(tree)
    images = Counter(name.rpartition("/")[0] for name in tree.images)

    def pass_through(prefix: str) -> str:
        while (
            len(inner := below.get(prefix, [])) == 1
            and not images[prefix]
            and below.get(inner[0])
            and not split_of(_last(inner[0]))
        ):
            prefix = inner[0]
        return prefix

    root = pass_through("")
    folders = below.get(root, [])
    # a class may be called "train": a split holds folders
    named = [name for name in folders if split_of(_last(name)) and (below.get(name) or not images[name])]
    if not any(below.get(name) for name in named):
        return [("", root)], []
    beside = [_last(name) for name in folders if name not in named]
    return [(str(split_of(_last(name))), pass_through(name)) for name in named], beside


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _children(tree: Tree) -> dict[str, list[str]]:
    below: dict[str, list[str]] = {}
    for folder in sorted(tree.folders):
        below.setdefault(folder.rpartition("/")[0], []).append(folder)
    return below


def read(tree: Tree) -> Listing:
    """Classes are the folders below each split, at any depth of files.

    Raises ``DeepresError`` for a tree without images and with fewer than two classes.
    """
    where, beside = tops(tree)
    notes = [f"beside the splits, ignored: {', '.join(beside)}"] if beside else []
    found, loose, empty = [], 0, []
    images = tree.images
    for split, top in where:
        start = f"{top}/" if top else ""
        inner = [name for name in images if name.startswith(start)]
        labelled = [name for name in inner if "/" in name[len(start) :]]
        loose += len(inner) - len(labelled)
        found += [(split, name[len(start) :].partition("/")[0], tree.files[name]) for name in labelled]
        used = {label for part, label, _ in found if part == split}
        empty += [name for name in _children(tree).get(top, []) if _last(name) not in used]
    if loose:
        notes.append(f"{loose} images lie in no class's folder and are left out")
    if empty:
        notes.append(f"folders without images: {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}")
    if tree.hidden:
        notes.append(f"hidden and system folders, skipped: {', '.join(tree.hidden[:5])}")
    if tree.skipped():
        notes.append(tree.skipped())
    if not found:
        raise DeepresError(
            f"{tree.root}: no images found; a folder per class is expected (CLASS/x.jpg or train/CLASS/x.jpg), or tar shards of such"
        )
    return listed(str(tree.root), found, notes)
