"""Digests of the examples of a set, by which a run that goes on tells whether its data are still the same."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepres.data.dataset import Data, Resident, Split
from deepres.data.files import Item
from deepres.data.leaks import LISTED, size_of

_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_BYTES = 1 << 30  # decoded examples up to this size are compared by their content, where no files are known
Digest = dict[str, Any]


def digest(data: Data) -> Digest:
    """The digest of each split, as plain values and tensors.

    Of images in files: a number for each one's name below the folder that all share, its label and its file's size in bytes, pixels are not
    read. Of arrays and texts: a number for each example's content, and labels. A split of more than ``LISTED`` examples has one digest of
    names and labels, since asking for a million sizes takes long.
    """
    splits = {word: getattr(data, name) for name, word in _SPLITS.items()}
    names = [item.name for split in splits.values() for item in _items(split)]
    start = _shared(min(names), max(names)) if names else 0
    return {word: _of_split(split, start, text=data.is_text) for word, split in splits.items()}


def difference(before: Digest, now: Digest, data: Data) -> str:
    """A sentence's part on what differs between the digests of a run's data then and those of ``data`` now; empty where nothing does."""
    found = (
        _of_pair(word, before[word], now[word], getattr(data, name), data) for name, word in _SPLITS.items() if word in before
    )
    return "; ".join(filter(None, found))


def _shared(one: str, other: str) -> int:
    """Length of the folder, or of the archive's name, with which both begin."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return 1 + max(one.rfind("/", 0, same), one.rfind(":", 0, same))


def _items(split: Split) -> tuple[Item, ...]:
    return split.sources if isinstance(split, Resident) else split.items


def _of_split(split: Split, start: int, *, text: bool) -> dict[str, Any]:
    items = _items(split)
    labels = torch.zeros(len(split), dtype=torch.int32) if text else split.labels.cpu().to(torch.int32)
    names = [item.name[start:] for item in items]
    if len(split) > LISTED:
        total = hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))
        total.update(labels.numpy().tobytes())
        return {"whole": total.hexdigest()}
    numbers = b"".join(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names)
    return {
        "names": torch.from_numpy(np.frombuffer(numbers, dtype="<i8").astype(np.int64)),
        "labels": labels,
        "content": torch.tensor(_contents(split), dtype=torch.int64),
    }


def _contents(split: Split) -> list[int]:
    """Sizes of files; checksums of examples without any; -1 for a file that went away, which whoever reads it says."""
    items = _items(split)
    if not items and isinstance(split, Resident):
        if split.pixels.numel() * split.pixels.element_size() > _BYTES:
            return [0] * len(split)
        return [zlib.crc32(row.tobytes()) for row in split.pixels.cpu().numpy()]
    sizes: dict[str, int] = {}
    found = []
    for item in items:
        if item.offset >= 0:
            found.append(item.length)
            continue
        if item.path not in sizes:
            try:
                sizes[item.path] = size_of(item)
            except OSError:
                sizes[item.path] = -1
        found.append(sizes[item.path])
    return found


def _of_pair(word: str, before: dict[str, Any], now: dict[str, Any], split: Split, data: Data) -> str:
    if before.keys() != now.keys() or "whole" in now:
        return "" if before == now else f"the names or labels of the {word} examples are others"
    items = _items(split)

    def told(places: Sequence[int], what: str) -> str:
        if not len(places):
            return ""
        first = places[0]
        called = items[first].name if items else f"number {first}"
        count = "1 example is" if len(places) == 1 else f"{len(places):,} examples are"
        label = "" if data.is_text else f" of class {data.classes[int(now['labels'][first])]!r}"
        return f"{word}: {count} {what}, the first {called!r}{label}"

    if len(before["names"]) == len(now["names"]) == len(items) > 0:
        old = {name: i for i, name in enumerate(before["names"].tolist())}
        known = [(i, old[name]) for i, name in enumerate(now["names"].tolist()) if name in old]
        new = [i for i, name in enumerate(now["names"].tolist()) if name not in old]
    else:
        known, new = [(i, i) for i in range(min(len(now["labels"]), len(before["labels"])))], []
    moved = [i for i, was in known if now["labels"][i] != before["labels"][was]]
    changed = [i for i, was in known if now["content"][i] != before["content"][was]]
    parts = (told(new, "there under a new name"), told(moved, "of another class"), told(changed, "of other content"))
    said = "; ".join(filter(None, parts))
    if not said and not _same(before, now):
        return f"{word}: the examples are in another order"
    return said


def _same(before: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[key].cpu(), now[key]) for key in now)
