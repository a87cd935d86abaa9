"""Images that are in two splits, which make a test error look better than it is."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict

from deepres.data.dataset import Resident, Split, Streamed
from deepres.data.files import Item

LISTED = 50_000  # images whose files are compared; sets with more are not, as asking for each size takes too long
_BYTES = 256 << 20  # content that is read for it; photographs hardly ever have equal sizes


def shared_images(one: Split, other: Split) -> int | None:
    """Count the images of ``other`` that are in ``one`` as well: equal pixels, or equal files of images that are decoded when needed.

    Resized, cropped and recompressed copies are not found. None where comparing would take long.
    """
    if isinstance(one, Resident) and isinstance(other, Resident):
        known = {hash(row.tobytes()) for row in one.pixels.numpy()}
        return sum(hash(row.tobytes()) in known for row in other.pixels.numpy())
    if not isinstance(one, Streamed) or not isinstance(other, Streamed) or one.items == other.items:
        return 0
    if len(one) + len(other) > LISTED:
        return None
    try:
        return _shared_files(one.items, other.items)
    except OSError:  # a file that went away; whoever reads it says so
        return 0


def _shared_files(one: tuple[Item, ...], other: tuple[Item, ...]) -> int | None:
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in one:
        by_size[size_of(item)].append(item)
    asked: dict[int, list[Item]] = defaultdict(list)
    for item in other:
        size = size_of(item)
        if size in by_size:
            asked[size].append(item)
    if sum(size * (len(items) + len(by_size[size])) for size, items in asked.items()) > _BYTES:
        return None
    shared = 0
    for size, items in asked.items():
        known = {hashlib.sha256(item.read()).digest() for item in by_size[size]}
        shared += sum(hashlib.sha256(item.read()).digest() in known for item in items)
    return shared


def size_of(item: Item) -> int:
    """Size of an encoded image in bytes. Raises ``OSError`` where its file is gone."""
    return item.length if item.offset >= 0 else os.stat(item.path).st_size
