"""Images in arrays: NumPy .npz, CIFAR's Python pickles, MNIST's idx files."""

from __future__ import annotations

import gzip
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepres.data.dataset import Resident
from deepres.data.decode import grey_bytes, is_image_name
from deepres.errors import DeepresError


@dataclass(frozen=True, eq=False)
class Arrays:
    """Decoded images and their labels, as a reader found them."""

    classes: tuple[str, ...]
    splits: dict[str, Resident]  # "" where none is named
    notes: tuple[str, ...] = ()


_NAMES = {  # of images and labels, by split
    "": (("images", "labels"), ("x", "y"), ("data", "labels"), ("data", "target")),
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),  # MedMNIST's names
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def npz(path: Path) -> Arrays:
    """``images`` and ``labels``, ``x_train``, ``y_train``, ``x_test``, ``y_test``, or MedMNIST's ``train_images``, ..."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key.lower(): file[key] for key in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DeepresError(f"{path}: not a NumPy archive of plain arrays ({error})") from error
    pairs = {
        split: pair
        for split, names in _NAMES.items()
        if (pair := next((p for p in names if p[0] in arrays and p[1] in arrays), None))
    }
    if not pairs:
        raise DeepresError(f"{path}: no images and labels, or x_train and y_train; it holds {', '.join(arrays) or 'nothing'}")
    return listing(str(path), {split: (arrays[images], arrays[labels]) for split, (images, labels) in pairs.items()})


def only_npz(folder: Path) -> Path | None:
    """The NumPy archive of a folder that holds one, and no images."""
    found = []
    for path in chain(folder.glob("*"), folder.glob("*/*")):
        if is_image_name(path.name) and path.is_file():
            return None  # at the first image: a set of class folders may hold a million
        if path.suffix.lower() == ".npz" and path.is_file():
            found.append(path)
    return found[0] if len(found) == 1 else None


def npz_of(folder: Path) -> Arrays:
    """The arrays of a folder that holds one NumPy archive."""
    path = only_npz(folder)
    assert path is not None
    return npz(path)


def listing(
    name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Arrays:
    """Arrays of images and labels by split, as torch tensors with the classes numbered.

    Raises ``DeepresError`` for fewer than two classes, and for arrays that are not images or not one label for each.
    """
    labels = {split: _labels(name, pair[1]) for split, pair in splits.items()}
    kinds = np.unique(np.concatenate(list(labels.values())))
    if not classes:
        classes = tuple(str(kind) for kind in kinds.tolist())
        labels = {split: np.searchsorted(kinds, values) for split, values in labels.items()}
    if len(classes) < 2:
        raise DeepresError(
            f"{name}: only one class, {classes[0] if classes else 'none'!r}; at least two are needed to tell apart"
        )
    found = {}
    for split, (images, _) in splits.items():
        pixels = _pixels(name, images)
        if len(pixels) != len(labels[split]):
            raise DeepresError(f"{name}: has {len(pixels)} images and {len(labels[split])} labels")
        found[split] = Resident(pixels, torch.from_numpy(labels[split].astype(np.int64)))
    return Arrays(classes, found, notes)


def _labels(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all()):
        values = values.argmax(1)
    if values.ndim != 1 or values.dtype.kind not in "iubUS":
        raise DeepresError(f"{name}: labels are one class for each image, not {values.dtype} of shape {values.shape}")
    return values


def _pixels(name: str, images: np.ndarray) -> torch.Tensor:
    """uint8 (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W), scaled by the type."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or (images.shape[-1] not in (1, 3) and images.shape[1] not in (1, 3)):
        raise DeepresError(
            f"{name}: images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, not {images.shape}"
        )
    if images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind == "f":
        if not (len(images) and images.min() >= 0 and images.max() <= 1):
            raise DeepresError(f"{name}: images of floats have to lie in [0, 1]; save others as uint8")
        images = grey_bytes(images, 1.0)
    elif images.dtype == np.uint16:
        images = grey_bytes(images, 65535.0)
    elif images.dtype == np.bool_:
        images = images.astype(np.uint8) * 255
    elif images.dtype != np.uint8:
        raise DeepresError(f"{name}: images are uint8, uint16, bool or floats in [0, 1], not {images.dtype}")
    return torch.from_numpy(np.array(images, order="C"))


class _Arrays(pickle.Unpickler):
    """Unpickles containers, strings, numbers and NumPy arrays, nothing else: a pickle must not run code."""

    _ALLOWED = frozenset({("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("encode", "_codecs")})

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rpartition(".")[2]) in self._ALLOWED and module.partition(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def is_cifar(folder: Path) -> bool:
    return (folder / "data_batch_1").is_file() or ((folder / "train").is_file() and (folder / "meta").is_file())


def cifar(folder: Path) -> Arrays:
    """An extracted ``cifar-10-batches-py`` or ``cifar-100-python``."""
    ten = (folder / "data_batch_1").is_file()
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"], "test": ["test_batch" if ten else "test"]}
    key = "labels" if ten else "fine_labels"
    splits = {}
    try:
        for split, files in names.items():
            parts = [_unpickled(folder / file) for file in files if (folder / file).is_file()]
            if parts:
                data = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
                splits[split] = data, np.concatenate([np.asarray(part[key]) for part in parts])
        meta = folder / ("batches.meta" if ten else "meta")
        classes = tuple(_unpickled(meta)["label_names" if ten else "fine_label_names"]) if meta.is_file() else ()
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DeepresError(f"{folder}: not CIFAR's Python files ({error})") from error
    return listing(str(folder), splits, classes)


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return dict(_Arrays(file, encoding="latin1").load())
    except (OSError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise DeepresError(f"{path}: not one of CIFAR's Python files ({error})") from error


_IDX = re.compile(r"(train|test|t10k)-(images|labels)[.-]idx\d-ubyte(\.gz)?$")


def is_mnist(folder: Path) -> bool:
    return any(_IDX.search(path.name) for path in folder.iterdir())


def mnist(folder: Path) -> Arrays:
    """``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-...``, perhaps with ``.gz``: MNIST, Fashion-MNIST, ..."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(folder.iterdir()):
        if found := _IDX.search(path.name):
            parts.setdefault("train" if found[1] == "train" else "test", {})[found[2]] = _idx(path)
    missing = next(
        (f"{split} {kind}" for split, pair in parts.items() for kind in ("images", "labels") if kind not in pair), None
    )
    if missing:
        raise DeepresError(f"{folder}: the file of the {missing} is missing")
    return listing(str(folder), {split: (pair["images"], pair["labels"]) for split, pair in parts.items()})


def _idx(path: Path) -> np.ndarray:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            data = file.read()
        dimensions = data[3]
        shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
        if data[:3] != b"\0\0\x08":
            raise ValueError("wrong magic number")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise DeepresError(f"{path}: not an idx file of bytes ({error})") from error
