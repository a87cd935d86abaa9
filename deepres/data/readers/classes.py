"""A folder per class, CLASS/x.jpg or SPLIT/CLASS/x.jpg; which folders are splits; and what is no data set for a classifier."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from deepres.data.files import Item
from deepres.data.tree import Tree
from deepres.errors import DeepresError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT = re.compile(rf"({'|'.join(_WORDS)})(?:[ _-]?(?:set|images|imgs|data|split|\d{{1,4}}))?", re.IGNORECASE)
_WITHIN = re.compile(rf"(?<![a-z])({'|'.join(_WORDS)})(?![a-z])", re.IGNORECASE)
# a class beside the split in one name, train_cat, cat_test or trainA; the parts that a set was cut into
_BOTH = (
    re.compile(rf"(?P<split>{'|'.join(_WORDS)})[ _-]+(?P<label>\D.*)", re.IGNORECASE),
    re.compile(rf"(?P<label>.*\D)[ _-]+(?P<split>{'|'.join(_WORDS)})", re.IGNORECASE),
    re.compile(r"(?P<split>train|val|test)(?P<label>[A-Z])"),
)
_FOLD = re.compile(r"(fold|split|part|batch|chunk|shard|subset)[ _-]?\d+", re.IGNORECASE)
# folders that hold a part of each example, not a class
_PARTS = frozenset(
    {"annotation", "annotations", "gt", "image", "images", "img", "imgs", "labels", "mask", "masks", "segmentation", "trimaps"}
)
_MASKS = frozenset({"annotation", "annotations", "gt", "mask", "masks", "segmentation", "trimaps"})


@dataclass(frozen=True)
class TreePart:
    """One split of a tree: the folder that holds the class folders, or the images themselves."""

    split: str  # "" where the tree has no splits
    top: str
    labelled: tuple[tuple[str, str], ...]  # (class, image) of the images in class folders
    loose: tuple[str, ...]  # images in no class's folder


def split_of(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"`` for a name such as Training, valid, dev, test_set, test1 or val2017; else None."""
    found = _SPLIT.fullmatch(name)
    return _WORDS[found[1].lower()] if found else None


def split_within(name: str) -> str | None:
    """The split that a word of a name tells, such as ``"train"`` for seg_train; None where none does, or several."""
    kinds = {_WORDS[word.lower()] for word in _WITHIN.findall(name)}
    return kinds.pop() if len(kinds) == 1 else None


def splits_among(names: list[str]) -> dict[str, str]:
    """Which of the folders of one level are splits: by their whole names, or by a word in which alone they differ (seg_train, seg_test)."""
    whole = {name: split for name in names if (split := split_of(name))}
    if whole:
        return whole
    alike: dict[str, dict[str, str]] = {}
    for name in names:
        if split := split_within(name):
            alike.setdefault(_WITHIN.sub("", name).lower(), {})[name] = split
    return next((group for group in alike.values() if len(set(group.values())) > 1), {})


def parts(tree: Tree) -> tuple[list[TreePart], list[str]]:
    """(the splits, or one part without a name; sentences on what lies beside them). Folders that hold nothing but one folder of images
    are passed through."""
    below: dict[str, list[str]] = {}
    for folder in sorted(tree.folders):
        below.setdefault(folder.rpartition("/")[0], []).append(folder)
    images = tree.images
    direct = Counter(name.rpartition("/")[0] for name in images)
    full = {folder for name in direct for folder in _upwards(name)}
    empty: list[str] = []

    def pass_through(prefix: str) -> str:
        while (
            len(inner := [name for name in below.get(prefix, []) if name in full]) == 1
            and not direct[prefix]
            and (any(name in full for name in below.get(inner[0], [])) or _last(inner[0]).lower() in _PARTS)
            and not split_of(_last(inner[0]))
        ):
            empty.extend(_last(name) for name in below[prefix] if name not in full)
            prefix = inner[0]
        return prefix

    def inside(folder: str) -> list[str]:
        return [name for name in below.get(folder, []) if name in full]

    root = pass_through("")
    folders = inside(root)
    by_name = _split_and_class([_last(name) for name in folders]) if not any(map(inside, folders)) else {}
    if by_name:
        return _by_name(root, by_name, images)
    if len(folders) > 1 and not any(direct[name] for name in folders) and all(map(inside, folders)):
        if all(splits_among([_last(name) for name in inside(top)]).keys() == set(map(_last, inside(top))) for top in folders):
            return _splits_inside(root, images)
        if all(_FOLD.fullmatch(_last(name)) for name in folders):
            said = f"{_some([_last(name) for name in folders])} are taken as parts of one set, whose folders are the classes"
            return [_part("", top, images) for top in folders], [said]
    among = splits_among([_last(name) for name in folders])
    named = {name: among[_last(name)] for name in folders if _last(name) in among}
    # a class may be called "train": one name alone is a split only where it holds folders, or is all there is
    if len(set(named.values())) == 1 and not any(name in full for top in named for name in below.get(top, [])):
        named = named if len(folders) == 1 else {}
    empty += [_last(name) for name in below.get(root, []) if name not in full]
    beside = [_last(name) for name in folders if name not in named] if named else []
    notes = [f"beside the splits, ignored: {_some(beside)}"] if beside else []
    where = [(split, pass_through(name)) for name, split in named.items()] or [("", root)]
    found = [_part(split, top, images) for split, top in where]
    for part in found if named else []:
        used = {label for label, _ in part.labelled}
        empty += [_last(name) for name in below.get(part.top, []) if _last(name) not in used]
    masks = sum(len(_inside(part.top, images)) - len(part.labelled) - len(part.loose) for part in found)
    notes += [f"{masks} images in folders of masks are left out"] if masks else []
    if empty:
        notes.append(f"folders without images: {_some(empty)}")
    return found, notes


def _split_and_class(names: list[str]) -> dict[str, tuple[str, str]]:
    """(split, class) of folders whose names say both; empty unless each of several splits has the same several classes."""
    for pattern in _BOTH:
        found = {name: match for name in names if (match := pattern.fullmatch(name))}
        pairs = {name: (_WORDS[match["split"].lower()], match["label"]) for name, match in found.items()}
        splits, labels = {split for split, _ in pairs.values()}, {label for _, label in pairs.values()}
        if len(pairs) == len(names) == len(set(pairs.values())) == len(splits) * len(labels) > max(len(splits), len(labels)):
            return pairs
    return {}


def _by_name(root: str, pairs: dict[str, tuple[str, str]], images: list[str]) -> tuple[list[TreePart], list[str]]:
    """The splits of folders that are called by split and class."""
    place = len(root) + 1 if root else 0
    found: dict[str, list[tuple[str, str]]] = {}
    for name in images:
        split, label = pairs.get(name[place:].partition("/")[0], ("", ""))
        if split:
            found.setdefault(split, []).append((label, name))
    example = next(iter(pairs))
    said = f"folders are named by split and class: {example} is class {pairs[example][1]!r} of {pairs[example][0]}"
    return [TreePart(split, root, tuple(both), ()) for split, both in found.items()], [said]


def _splits_inside(root: str, images: list[str]) -> tuple[list[TreePart], list[str]]:
    """The splits of a tree CLASS/SPLIT/x.jpg."""
    place = len(root) + 1 if root else 0
    found: dict[str, list[tuple[str, str]]] = {}
    for name in images:
        label, within, *_ = [*name[place:].split("/"), ""]
        split = split_of(within) or split_within(within)
        if split:
            found.setdefault(split, []).append((label, name))
    return [TreePart(split, root, tuple(both), ()) for split, both in found.items()], [
        "each class has its splits in its own folder"
    ]


def _inside(top: str, images: list[str]) -> list[str]:
    return [name for name in images if name.startswith(f"{top}/" if top else "")]


def _part(split: str, top: str, images: list[str]) -> TreePart:
    start = f"{top}/" if top else ""
    inner = _inside(top, images)
    labelled = tuple((name[len(start) :].partition("/")[0], name) for name in inner if "/" in name[len(start) :])
    if {label.lower() for label, _ in labelled} <= _PARTS:  # SPLIT/images/x.jpg: no classes
        plain = [name for name in inner if not _MASKS & set(name[len(start) :].lower().split("/")[:-1])]
        return TreePart(split, top, (), tuple(plain or inner))
    return TreePart(split, top, labelled, tuple(name for name in inner if "/" not in name[len(start) :]))


def labelled(tree: Tree, found: list[TreePart]) -> list[tuple[str, str, Item]]:
    """(split, class, item) of the images in class folders."""
    return [(part.split, label, tree.files[name]) for part in found for label, name in part.labelled]


def refuse_other_tasks(tree: Tree) -> None:
    """Raises ``DeepresError`` that names what a tree holds, where that is boxes (VOC, COCO, YOLO) or masks."""
    lowered = {name.lower(): name for name in (*tree.files, *tree.folders)}
    last = {_last(name) for name in lowered}
    what = ""
    if {"annotations", "jpegimages"} <= last:
        what = "boxes in Pascal VOC's layout"
    elif any("coco" in _last(name) or _last(name).startswith("instances") for name in lowered if name.endswith(".json")):
        what = "boxes in COCO's layout"
    else:
        stems = {name.rpartition(".")[0] for name in lowered if "/images/" in f"/{name}"}
        for name in lowered:
            if f"/{name}".count("/labels/") and name.endswith(".txt"):
                image = f"/{name}".replace("/labels/", "/images/").removeprefix("/").rpartition(".")[0]
                if image in stems and _is_yolo(tree.files[lowered[name]].read()):
                    what = "boxes in YOLO's layout"
                    break
    if what:
        raise DeepresError(
            f"{tree.root}: holds {what}, for object detection, not a class for each image; `deepres detect` takes it"
        )
    folders = {_last(name.rpartition("/")[0]).lower() for name in tree.images}
    if folders and folders <= _PARTS and folders & {"mask", "masks", "segmentation"} and len(folders) > 1:
        raise DeepresError(f"{tree.root}: holds images and their masks, for segmentation, not a class for each image")


def _is_yolo(content: bytes) -> bool:
    """Whether a file's lines are a class and the numbers of a box or polygon."""
    lines = content.decode("utf-8", errors="replace").split("\n")
    filled = [line.split() for line in lines if line.strip()]
    try:
        return all(len(cells) >= 5 and [float(cell) for cell in cells] for cells in filled)
    except ValueError:
        return False


def _upwards(folder: str) -> list[str]:
    cells = folder.split("/")
    return ["/".join(cells[:i]) for i in range(1, len(cells) + 1)] if folder else []


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")
