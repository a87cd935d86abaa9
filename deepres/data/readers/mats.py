"""Labels in MATLAB files: Oxford Flowers' imagelabels.mat and setid.mat, Stanford Cars' annotations."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from deepres.data.files import Item
from deepres.data.readers.classes import split_within
from deepres.data.tree import Tree
from deepres.errors import DeepresError

_SETS = {"trnid": "train", "valid": "val", "tstid": "test"}  # of setid.mat


def labels_in_mats(tree: Tree, notes: list[str]) -> list[tuple[str, str, Item]]:
    """(split, class, item) of the images that the MATLAB files of a known set label; empty where there are none.

    Raises ``DeepresError`` for such a file that is damaged, or that numbers an image that is not there.
    """
    files = {name.rpartition("/")[2].lower(): name for name in tree.files if name.lower().endswith(".mat")}
    if "imagelabels.mat" in files:
        return _flowers(tree, files, notes)
    found = []
    classes = _class_names(tree, files)
    by_name = {name.rpartition("/")[2]: name for name in tree.images}
    for file, name in files.items():
        if "annos" not in file:
            continue
        table: Any = _load(tree, name).get("annotations")
        fields = table.dtype.names or () if isinstance(table, np.ndarray) else ()
        path = next((field for field in ("relative_im_path", "fname") if field in fields), None)
        if path is None or "class" not in fields:
            continue
        split = split_within(PurePosixPath(file).stem) or ""
        here = {
            one.rpartition("/")[2]: one
            for one in tree.images
            if split_within(one.split("/")[-2] if "/" in one else "") == split
        }
        for row in np.atleast_1d(table):
            image = (here or by_name).get(str(row[path]).rpartition("/")[2])
            if image is not None:
                part = split or (("train", "test")[int(row["test"])] if "test" in fields else "")
                found.append((part, classes.get(int(row["class"]), str(int(row["class"]))), tree.files[image]))
        notes.append(f"labels are taken from {name}")
    return found


def _flowers(tree: Tree, files: dict[str, str], notes: list[str]) -> list[tuple[str, str, Item]]:
    name = files["imagelabels.mat"]
    labels = np.atleast_1d(_load(tree, name).get("labels", []))
    splits: dict[int, str] = {}
    if "setid.mat" in files:
        sets = _load(tree, files["setid.mat"])
        splits = {int(i): split for key, split in _SETS.items() for i in np.atleast_1d(sets.get(key, []))}
    by_stem = {PurePosixPath(image).stem: image for image in tree.images}
    found = []
    for i, label in enumerate(labels.tolist(), 1):
        image = by_stem.get(f"image_{i:05d}")
        if image is None:
            raise DeepresError(f"{tree.root}/{name}: has {len(labels)} labels, and there is no image_{i:05d}")
        found.append((splits.get(i, ""), str(label), tree.files[image]))
    notes.append(f"labels are taken from {name}" + (f", splits from {files['setid.mat']}" if splits else ""))
    return found


def _class_names(tree: Tree, files: dict[str, str]) -> dict[int, str]:
    """Names by number, from 1 on."""
    if "cars_meta.mat" not in files:
        return {}
    names = np.atleast_1d(_load(tree, files["cars_meta.mat"]).get("class_names", []))
    return {i: str(name) for i, name in enumerate(names.tolist(), 1)}


def _load(tree: Tree, name: str) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return dict(loadmat(io.BytesIO(tree.files[name].read()), squeeze_me=True))
    except Exception as error:  # of a damaged file loadmat raises a dozen kinds
        raise DeepresError(f"{tree.root}/{name}: not a MATLAB file that can be read ({error})") from error
