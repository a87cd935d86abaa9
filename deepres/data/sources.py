"""Where examples come from: ``open_data("digits")``, ``"cifar10"``, a folder of images, tar shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepres.data.cache import cache_folder, user_path
from deepres.data.dataset import Data, Resident, Streamed, decode_all, split_off
from deepres.data.decode import UnreadableImage, open_image
from deepres.data.files import Item, Listing, fingerprint, listing
from deepres.data.prepare import Prepare
from deepres.data.text import is_text, read_text
from deepres.errors import DeepresError, nearest

SMALL = 96  # images up to this side are kept decoded in memory, larger ones are streamed
RESIDENT_BYTES = 4 << 30
_SPLIT_SEED = 20151210  # the day of arXiv:1512.03385


def open_data(name: str | Path, *, size: int | None = None, channels: int | None = None, val_share: float = 0.1) -> Data:
    """Open a classification set.

    ``name``: ``"digits"`` (1,797 handwritten digits of 8x8, built in), ``"cifar10"`` or ``"cifar100"`` (torchvision's
    files, downloaded at first), or a folder: ``CLASS/*.jpg``, ``train/CLASS/*.jpg`` with ``test`` or ``val`` beside it, or
    tar shards of such. A validation split of ``val_share`` is taken off the training set unless the folder has one beside
    its test set; a folder without splits also gives 15 % of each class for testing.

    A ``.txt`` file is read as characters, for language models; ``size`` is then the characters of an example [128].

    ``size``: side of the input in pixels; default: the images' own where they agree on one up to 96, else 224.

    Raises ``DeepresError`` for an unknown name and for a folder with no images, one class, or unreadable images only.
    """
    if not 0 < val_share < 1:
        raise DeepresError(f"val_share is the share of training images kept for validation, between 0 and 1, not {val_share}")
    if size is not None and size < 1:
        raise DeepresError(f"size is the side of the input in pixels and at least 1, not {size}")
    path = user_path(name)
    if is_text(path):
        return read_text(path, size, val_share)
    if path.is_dir():
        return _folder(path, size, channels, val_share)
    built_in = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar}
    if str(name) not in built_in:
        hint = nearest(str(name), built_in) or f"; there are {', '.join(built_in)}, or the path of a folder of images"
        raise DeepresError(f"unknown data {str(name)!r}: neither a built-in set nor a folder that exists{hint}")
    train, test, classes = built_in[str(name)](str(name))
    if size is not None:
        train, test = (_resized(split, size) for split in (train, test))
    if channels is not None:
        train, test = (_channels(split, channels) for split in (train, test))
    rest, val = split_off(train.labels, val_share, _SPLIT_SEED)
    return _resident(str(name), classes, train.take(rest), train.take(val), test)


def _resident(
    name: str, classes: tuple[str, ...], train: Resident, val: Resident, test: Resident, unreadable: tuple[str, ...] = ()
) -> Data:
    sample = train.pixels[:: max(1, len(train) // 20000)].float() / 255
    numbers = (sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-3))
    mean, std = (tuple(round(v, 6) for v in values.tolist()) for values in numbers)
    prepare = Prepare(size=train.pixels.shape[-1], channels=train.pixels.shape[1], mean=mean, std=std)
    return Data(name, classes, train, val, test, prepare, unreadable)


def _digits(_: str) -> tuple[Resident, Resident, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    everything = Resident(pixels, torch.from_numpy(digits.target).long())
    rest, test = split_off(everything.labels, 0.2, _SPLIT_SEED)
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


def _resized(split: Resident, size: int) -> Resident:
    if split.pixels.shape[-1] == size:
        return split
    small = torch.nn.functional.interpolate(split.pixels.float(), (size, size), mode="bilinear", antialias=True)
    return Resident(small.round().clamp(0, 255).byte(), split.labels)


def _channels(split: Resident, channels: int) -> Resident:
    have = split.pixels.shape[1]
    if have == channels:
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


def _folder(root: Path, size: int | None, channels: int | None, val_share: float) -> Data:
    found = listing(root)
    splits = _complete(root, found, val_share)
    side, needed = _probe(splits["train"])
    size, channels = size or side or 224, channels or needed
    total = sum(map(len, splits.values()))
    prepare = Prepare.usual(size, channels)
    if size > SMALL or total * channels * size * size > RESIDENT_BYTES:
        train, val, test = (Streamed(splits[part], channels) for part in ("train", "val", "test"))
        return Data(root.name, found.classes, train, val, test, prepare)
    decoded = [_decoded(splits[part], prepare) for part in ("train", "val", "test")]
    bad = tuple(name for _, names in decoded for name in names)
    kept = [split for split, _ in decoded]
    for part, split in zip(("training", "validation", "test"), kept, strict=True):
        if not len(split):
            raise DeepresError(f"{root}: no {part} image can be read, the first that failed: {bad[0]}")
    return _resident(root.name, found.classes, kept[0], kept[1], kept[2], bad)


def _complete(root: Path, found: Listing, val_share: float) -> dict[str, tuple[Item, ...]]:
    """Train, validation and test items, splitting off what the folder does not have."""
    splits = {part: items for part, items in found.splits.items() if part}
    if "train" not in splits:
        if splits:
            raise DeepresError(f"{root}: has {' and '.join(splits)} but no train folder")
        splits["train"] = found.splits[""]
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")  # ImageNet's layout: what is called val there is the held-out set
    for part, share in (("test", 0.15), ("val", val_share)):
        if part not in splits:
            labels = torch.tensor([item.label for item in splits["train"]])
            if labels.bincount().min() < 2:
                few = found.classes[int(labels.bincount().argmin())]
                raise DeepresError(f"{root}: class {few!r} has too few images to split some off for {part}; add some")
            rest, off = split_off(labels, share, _SPLIT_SEED)
            items = splits["train"]
            splits["train"], splits[part] = (tuple(items[i] for i in index.tolist()) for index in (rest, off))
    return splits


def _decoded(items: tuple[Item, ...], prepare: Prepare) -> tuple[Resident, list[str]]:
    """``decode_all``, once: the result is kept in the cache folder until a file changes."""
    path = cache_folder() / "decoded" / f"{fingerprint(items, prepare.size, prepare.channels)}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            bad = json.loads((file.metadata() or {}).get("unreadable", "[]"))
            return Resident(file.get_tensor("pixels"), file.get_tensor("labels")), bad
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
