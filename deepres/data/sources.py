"""Opening of data by name: ``open_data("digits")``, ``"cifar10"``, a folder of images, tar shards."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepres.data.dataset import Data, Resident, Split, Streamed, decode_all, split_off
from deepres.data.decode import UnreadableImage, open_image
from deepres.data.documents import is_packed_text
from deepres.data.files import Item, fingerprint
from deepres.data.leaks import shared_images
from deepres.data.prepare import Prepare
from deepres.data.readers import Arrays, find
from deepres.data.splits import SPLIT_SEED, complete
from deepres.data.text import is_text, read_text
from deepres.data.vocabulary import Vocabulary
from deepres.errors import DeepresError, nearest
from deepres.paths import cache_folder, name_of, user_path

SMALL = 96  # images up to this side are kept decoded in memory, larger ones are streamed
RESIDENT_BYTES = 4 << 30


def open_data(
    name: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    val_share: float = 0.1,
    tokens: str | Path | Vocabulary | None = None,
) -> Data:
    """Open a classification set.

    ``name``: ``"digits"`` (1,797 handwritten digits of 8x8, built in), ``"cifar10"`` or ``"cifar100"`` (torchvision's
    files, downloaded at first), or a folder: ``CLASS/*.jpg``, ``train/CLASS/*.jpg`` with ``test`` or ``val`` beside it,
    tar shards or a zip of such, a table of paths and labels, and the other ways in ``readers``.
    A validation split of ``val_share`` is taken off the training set unless the folder has one beside
    its test set; a folder without splits also gives 15 % of each class for testing.

    A ``.txt`` file, JSON lines with a ``text`` field, or a folder of these is a text for language models. ``tokens`` says by which
    tokens it is read (see ``data.text.read_text``) [characters]; ``size`` is then the number of tokens of an example [128].

    ``size``: side of the input in pixels; default: the images' own where they agree on one up to 96, else 224.

    Raises ``DeepresError`` for an unknown name and for a folder with no images, one class, or unreadable images only.
    """
    if not 0 < val_share < 1:
        raise DeepresError(f"val_share is the share of training images kept for validation, between 0 and 1, not {val_share}")
    if size is not None and size < 1:
        raise DeepresError(f"size is the side of the input in pixels, or tokens of a text, and at least 1, not {size}")
    if channels not in (None, 1, 3):
        raise DeepresError(f"{name}: images are read with 1 or 3 channels, not {channels}")
    path = user_path(name)
    if is_text(path):
        return read_text(path, size, val_share, tokens)
    if is_packed_text(path):
        raise DeepresError(f"{path}: a compressed text; unpack it first")
    if path.exists():
        return _found(path, size, channels, val_share)
    built_in = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar}
    if str(name) not in built_in:
        hint = (
            nearest(str(name), built_in) or f"; there are {', '.join(built_in)}, or the path of a folder of images or of a text"
        )
        raise DeepresError(f"unknown data {str(name)!r}: neither a built-in set nor a path that exists{hint}")
    train, test, classes = built_in[str(name)](str(name))
    if size is not None:
        train, test = (_resized(split, size) for split in (train, test))
    if channels is not None:
        train, test = (_channels(split, channels) for split in (train, test))
    rest, val = split_off(train.labels, val_share, SPLIT_SEED)
    return _resident(str(name), classes, train.take(rest), train.take(val), test)


def _resident(
    name: str,
    classes: tuple[str, ...],
    train: Resident,
    val: Resident,
    test: Resident,
    unreadable: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Data:
    if not len(train):
        return Data(
            name, classes, train, val, test, Prepare.usual(test.pixels.shape[-1], test.pixels.shape[1]), unreadable, notes
        )
    sample = train.pixels[:: max(1, len(train) // 20000)].float() / 255
    numbers = (sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-3))
    mean, std = (tuple(round(v, 6) for v in values.tolist()) for values in numbers)
    prepare = Prepare(size=train.pixels.shape[-1], channels=train.pixels.shape[1], mean=mean, std=std)
    return Data(name, classes, train, val, test, prepare, unreadable, notes)


def _digits(_: str) -> tuple[Resident, Resident, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    everything = Resident(pixels, torch.from_numpy(digits.target).long())
    rest, test = split_off(everything.labels, 0.2, SPLIT_SEED)
    return everything.take(rest), everything.take(test), tuple("0123456789")


def _cifar(name: str) -> tuple[Resident, Resident, tuple[str, ...]]:
    import torchvision

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    root = cache_folder() / name
    try:
        pair = [kind(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:  # urllib, ssl and torchvision raise a dozen kinds here
        raise DeepresError(
            f"{name}: not on disk under {root}, and the download failed ({type(error).__name__}: {error}); "
            f"put the extracted files there, or give the path of a folder of images"
        ) from error
    train, test = (
        Resident(torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(half.targets)) for half in pair
    )
    return train, test, tuple(pair[0].classes)


def _resized(split: Resident, size: int | None) -> Resident:
    """To ``size`` x ``size``; None: to the shorter of the images' own sides."""
    size = size or min(split.pixels.shape[-2:])
    if split.pixels.shape[-2:] == (size, size):
        return split
    if not len(split):
        return Resident(split.pixels.new_empty((0, split.pixels.shape[1], size, size)), split.labels)
    small = torch.nn.functional.interpolate(split.pixels.float(), (size, size), mode="bilinear", antialias=True)
    return Resident(small.round().clamp(0, 255).byte(), split.labels)


def _channels(split: Resident, channels: int | None) -> Resident:
    have = split.pixels.shape[1]
    if channels is None or have == channels:
        return split
    if have == 1:
        return Resident(split.pixels.expand(-1, channels, -1, -1).contiguous(), split.labels)
    return Resident(split.pixels.float().mean(1, keepdim=True).round().byte(), split.labels)


def _probe(items: tuple[Item, ...]) -> tuple[int | None, int]:
    """(the side that a sample of the images shares, if it is one and small; the channels they need)."""
    sizes, grey, failed = set(), True, ""
    for item in items[:: max(1, len(items) // 48)]:
        try:
            image = open_image(item.read())
        except (UnreadableImage, OSError) as error:
            failed = f"{item.name}: {error}"
            continue
        sizes.add(image.size)
        bands = np.asarray(image.resize((16, 16)))
        grey = grey and bool((bands == bands[..., :1]).all())
    if not sizes:
        raise DeepresError(f"none of the images that were tried can be read, the last: {failed}")
    side = next(iter(sizes)) if len(sizes) == 1 else None
    return (side[0] if side and side[0] == side[1] and side[0] <= SMALL else None), (1 if grey else 3)


def _found(path: Path, size: int | None, channels: int | None, val_share: float) -> Data:
    found = find(path)
    if isinstance(found, Arrays):
        arrays, notes = complete(str(path), found.classes, found.splits, val_share)
        kept = [_channels(_resized(part, size), channels) for part in (arrays["train"], arrays["val"], arrays["test"])]
        return _resident(name_of(path), found.classes, kept[0], kept[1], kept[2], notes=(*found.notes, *notes))
    streams = {split: Streamed(items) for split, items in found.splits.items()}
    splits, notes = complete(str(path), found.classes, streams, val_share)
    notes = (*found.notes, *notes)
    side, needed = _probe((splits["train"] if len(splits["train"]) else splits["test"]).items)
    size, channels = size or side or 224, channels or needed
    total = sum(map(len, splits.values()))
    prepare = Prepare.usual(size, channels)
    if size > SMALL or total * channels * size * size > RESIDENT_BYTES:
        train, val, test = (replace(splits[part], channels=channels) for part in ("train", "val", "test"))
        notes = (*notes, *_leaks(train, test))
        return Data(name_of(path), found.classes, train, val, test, prepare, notes=notes)
    decoded = [_decoded(splits[part].items, prepare) for part in ("train", "val", "test")]
    bad = tuple(dict.fromkeys(name for _, names in decoded for name in names))
    ready = [split for split, _ in decoded]
    for part, split in zip(("train", "val", "test"), ready, strict=True):
        if len(splits[part]) and not len(split):
            raise DeepresError(f"{path}: no {part} image can be read, the first that failed: {bad[0]}")
    notes = (*notes, *(_leaks(ready[0], ready[2]) if splits["train"] is not splits["test"] else ()))
    return _resident(name_of(path), found.classes, ready[0], ready[1], ready[2], bad, notes)


def _leaks(train: Split, test: Split) -> tuple[str, ...]:
    shared = shared_images(train, test)
    if shared is None:
        return ("whether test images are training images as well was not looked at, as the set is too large for it",)
    return (
        (f"{shared:,} of the {len(test):,} test images are training images as well: the test error is too low",)
        if shared
        else ()
    )


def _decoded(items: tuple[Item, ...], prepare: Prepare) -> tuple[Resident, list[str]]:
    """``decode_all``, once: the result is kept in the cache folder until a file changes."""
    path = cache_folder() / "decoded" / f"{fingerprint(items, prepare.size, prepare.channels)}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            bad = json.loads((file.metadata() or {}).get("unreadable", "[]"))
            unread = set(bad)
            sources = tuple(item for item in items if item.name not in unread)
            return Resident(file.get_tensor("pixels"), file.get_tensor("labels"), sources), bad
    except (OSError, SafetensorError):
        split, bad = decode_all(items, prepare)
    _keep(path, {"pixels": split.pixels, "labels": split.labels}, {"unreadable": json.dumps(bad)})
    return split, bad


def _keep(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write to the cache, whole or not at all; a cache that cannot be written is only slower."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
