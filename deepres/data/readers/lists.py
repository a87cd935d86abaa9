"""Lists that say which images of class folders are for training and which for testing: Food-101, DTD, CUB-200, Stanford Dogs, ..."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from deepres.data.files import Item
from deepres.data.readers.classes import split_within
from deepres.data.tree import Tree

_SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".mat")
_ORDER = ("test", "val", "train")  # an image of several lists belongs to the first: no test image is ever trained on
_Found = list[tuple[str, str, Item]]  # (split, class, item)
_Key = tuple[str, int]  # an item's path and offset


def split_by_lists(tree: Tree, found: _Found) -> tuple[_Found, list[str], list[str]]:
    """(the images with the splits that the tree's lists give, the lists that were used, sentences).

    A list names an image in each line, by its path or the end of it, with a suffix or without; anything may follow. Its split is a word
    of its name. Without lists for training and for testing or validation, or ``train_test_split.txt`` of CUB-200, nothing changes.
    """
    names = [name for name in tree.files if name.lower().endswith(_SUFFIXES)]
    if not names or len({split for split, _, _ in found}) != 1 or found[0][0]:
        return found, [], []
    ends = _Ends(tree, found)
    by_number = _by_number(tree, names, ends)
    if by_number:
        return _divided(found, by_number, ["train_test_split.txt"], 0)
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        split = _split_of_list(name)
        if split:
            rest = re.sub("trainval|training|train|validation|valid|val|testing|test", "", name.rpartition("/")[2].lower())
            groups.setdefault(rest, {})[split] = name
    for _, group in sorted(groups.items(), key=lambda one: (-len(one[1]), len(one[0]), one[0])):
        if "train" not in group or len(group) < 2:
            continue
        places: dict[_Key, str] = {}
        missing = 0
        for split in _ORDER:
            if split in group:
                known, unknown = ends.of(_lines(tree, group[split]))
                missing += unknown
                if len(known) > unknown:
                    places |= {key: split for key in known if key not in places}
        if {"train"} < set(places.values()):
            return _divided(found, places, list(group.values()), missing)
    return found, [], []


class _Ends:
    """Images by the ends of their paths, without suffixes; an end that two images share belongs to neither."""

    def __init__(self, tree: Tree, found: _Found) -> None:
        here = {(item.path, item.offset) for _, _, item in found}
        self.names = [(name, key) for name, item in tree.files.items() if (key := (item.path, item.offset)) in here]
        self.tables: dict[int, dict[str, _Key | None]] = {}

    def find(self, entry: str) -> _Key | None:
        entry = entry.replace("\\", "/").strip().removeprefix("./")
        depth = entry.count("/") + 1
        if depth not in self.tables:
            table = self.tables[depth] = {}
            for name, key in self.names:
                for end in {"/".join(name.split("/")[-depth:]), "/".join(name.rpartition(".")[0].split("/")[-depth:])}:
                    table[end] = None if end in table else key
        return self.tables[depth].get(entry)

    def of(self, lines: Sequence[str]) -> tuple[list[_Key], int]:
        """(the images of lines, the number of lines that name none)."""
        known, unknown = [], 0
        for line in lines:
            words = line.split()
            cells = [line, *(" ".join(words[:k]) for k in range(len(words), 0, -1)), *re.split(r"[\s,;]+", line)]
            key = next((key for cell in cells if cell and (key := self.find(cell))), None)
            if key:
                known.append(key)
            elif line.strip() and not line.startswith("#"):
                unknown += 1
        return known, unknown


def _split_of_list(name: str) -> str | None:
    stem = PurePosixPath(name).stem.lower()
    return "train" if "trainval" in stem else split_within(stem)


def _lines(tree: Tree, name: str) -> list[str]:
    content = tree.files[name].read()
    if not name.lower().endswith(".mat"):
        return content.decode("utf-8-sig", errors="surrogateescape").splitlines()
    from scipy.io import loadmat

    try:
        table = loadmat(io.BytesIO(content), squeeze_me=True)
        return [str(entry) for entry in table["file_list"].tolist()]  # Stanford Dogs
    except Exception:  # of a damaged file loadmat raises a dozen kinds; of another one the key is missing
        return []


def _by_number(tree: Tree, names: Sequence[str], ends: _Ends) -> dict[_Key, str]:
    """The splits of CUB-200: ``images.txt`` numbers the images, ``train_test_split.txt`` says 1 for training."""
    files = {name.rpartition("/")[2].lower(): name for name in names}
    if not {"images.txt", "train_test_split.txt"} <= set(files):
        return {}
    images, splits = (
        dict(cells for line in _lines(tree, files[one]) if len(cells := line.split(maxsplit=1)) == 2)
        for one in ("images.txt", "train_test_split.txt")
    )
    return {
        key: "train" if splits[number].strip() == "1" else "test"
        for number, path in images.items()
        if number in splits and (key := ends.find(path))
    }


def _divided(found: _Found, places: dict[_Key, str], lists: list[str], missing: int) -> tuple[_Found, list[str], list[str]]:
    kept = [(places[key], label, item) for _, label, item in found if (key := (item.path, item.offset)) in places]
    notes = [f"the splits are those of {', '.join(lists)}"]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} images are in none of these lists and are left out")
    if missing:
        notes.append(f"{missing} lines of these lists name no image of a class")
    return kept, lists, notes
