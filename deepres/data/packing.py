"""Pack a folder of images into tar shards, which a cluster's file system serves far better than a million small files."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.data.decode import UnreadableImage, is_image_name, open_image, suffix_of
from deepres.data.files import Item, Listing
from deepres.data.loader import seeded
from deepres.data.options import PackOptions
from deepres.data.readers import find
from deepres.errors import DeepresError
from deepres.paths import user_path


@dataclass(frozen=True)
class Packed:
    """Result of ``pack``."""

    shards: tuple[Path, ...]
    images: int
    unreadable: tuple[str, ...]  # left out


def pack(
    root: str | Path,
    out: str | Path,
    *,
    shard_bytes: int = PackOptions.shard_bytes,
    verify: bool = PackOptions.verify,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Write ``OUT/SPLIT-00000.tar``, ... with members ``SPLIT/CLASS/NAME``, which ``open_data(OUT)`` reads.

    Images are stored unchanged and in a shuffled order, so that each shard holds images of every class. A shard appears whole or not
    at all. ``PackOptions`` explains ``shard_bytes`` and ``verify``; ``watch(done, total)`` is called before each image.

    Raises ``DeepresError`` for a folder without images, and where ``out`` holds shards already.
    """
    root, out = user_path(root), user_path(out)
    found = find(root)
    if not isinstance(found, Listing):
        raise DeepresError(f"{root}: holds decoded arrays, not image files to pack")
    unfit = next((label for label in found.classes if "/" in label or label in (".", "..")), None)
    if unfit is not None:
        raise DeepresError(f"{root}: the class {unfit!r} cannot be the name of a folder in a shard; call it otherwise")
    if shard_bytes < 1:
        raise DeepresError(f"a shard's size is in bytes and above 0, not {shard_bytes}")
    if any(out.glob("*.tar")):
        raise DeepresError(f"{out}: holds tar files already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    total, done, images = sum(map(len, found.splits.values())), 0, 0
    shards: list[Path] = []
    bad: list[str] = []
    for split, items in sorted(found.splits.items()):
        writer = _Writer(out, split or "images", shard_bytes)
        try:
            for i in torch.randperm(len(items), generator=seeded(0)).tolist():
                done += 1
                watch(done, total)
                try:
                    data = items[i].read()
                    if verify:
                        open_image(data)
                except (UnreadableImage, OSError):
                    bad.append(items[i].name)
                    continue
                writer.add("/".join(filter(None, (split, found.classes[items[i].label], _file(items[i], i, data)))), data)
                images += 1
        except BaseException:
            writer.abandon()
            raise
        shards += writer.close()
    if not images:
        raise DeepresError(f"{root}: none of its {total} images can be read")
    return Packed(tuple(shards), images, tuple(bad))


def _file(item: Item, index: int, data: bytes) -> str:
    """A name of its own in the shard, whatever folders the file came from. A row of a table has no name, only a format."""
    name = Path(item.member or item.path).name
    return f"{index:08d}-{name}" if is_image_name(name) else f"{index:08d}{suffix_of(data)}"


class _Writer:
    def __init__(self, out: Path, name: str, limit: int) -> None:
        self.out, self.name, self.limit = out, name, limit
        self.shards: list[Path] = []
        self.tar: tarfile.TarFile | None = None
        self.size = 0

    def add(self, name: str, data: bytes) -> None:
        if self.tar is None or self.size + len(data) > self.limit:
            self._finish()
            self.path = self.out / f"{self.name}-{len(self.shards):05d}.tar"
            self.part = self.path.with_suffix(".tar.part")
            self.tar = tarfile.open(self.part, "w")  # noqa: SIM115 (closed when the shard is full)
            self.size = 0
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        self.size += len(data)

    def _finish(self) -> None:
        if self.tar is not None:
            self.tar.close()
            os.replace(self.part, self.path)
            self.shards.append(self.path)
            self.tar = None

    def close(self) -> list[Path]:
        self._finish()
        return self.shards

    def abandon(self) -> None:
        if self.tar is not None:
            with contextlib.suppress(OSError):  # a full disk has no room for the end of the file either
                self.tar.close()
            self.part.unlink(missing_ok=True)
