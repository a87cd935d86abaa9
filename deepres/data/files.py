"""Images on disk: a folder per class, or tar shards of such folders, and which split each belongs to."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deepres.data.decode import is_image_name
from deepres.errors import DeepresError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded image: a file, or a stretch of a tar shard."""

    path: str
    label: int
    offset: int = -1  # where in the shard; -1 for a file of its own
    length: int = 0
    member: str = ""  # its name in the shard

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            if self.offset < 0:
                return file.read()
            file.seek(self.offset)
            return file.read(self.length)


@dataclass(frozen=True)
class Listing:
    """What a folder holds: the classes, and the items of each split ("" where the layout names none)."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[Item, ...]]


def _loose(root: Path) -> Iterator[tuple[str, str, Item]]:
    """(split, class, item) of each image at ROOT/CLASS/... or ROOT/SPLIT/CLASS/..."""
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    if folders and all(p.name.lower() in SPLITS for p in folders):
        tops = [(SPLITS[p.name.lower()], p) for p in folders]
    else:
        tops = [("", root)]
    for split, top in tops:
        for folder in sorted(p for p in top.iterdir() if p.is_dir()):
            for path in sorted(folder.rglob("*")):
                if is_image_name(path.name) and path.is_file():
                    yield split, folder.name, Item(str(path), -1)


def _shards(shards: Iterable[Path]) -> Iterator[tuple[str, str, Item]]:
    """The same for members CLASS/NAME or SPLIT/CLASS/NAME of uncompressed tar files.

    The headers are read once; then every image can be read by itself, in any order, so that shards shuffle over the whole
    set and a run resumes in mid-epoch exactly as with loose files.
    """
    for shard in shards:
        named = next((SPLITS[word] for word in shard.stem.lower().replace("_", "-").split("-") if word in SPLITS), "")
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if not member.isfile() or not is_image_name(path.name) or len(path.parts) < 2:
                        continue
                    split = SPLITS.get(path.parts[-3].lower(), named) if len(path.parts) > 2 else named
                    yield split, path.parts[-2], Item(str(shard), -1, member.offset_data, member.size, member.name)
        except (tarfile.TarError, OSError) as error:
            raise DeepresError(f"{shard}: not a whole, uncompressed tar file ({error})") from error


def listing(root: Path) -> Listing:
    """Find the images below ``root``.

    Raises ``DeepresError`` for a folder without images or with fewer than two classes.
    """
    shards = sorted(root.glob("*.tar"))
    found = list(_shards(shards) if shards else _loose(root))
    if not found:
        raise DeepresError(
            f"{root}: no images found; a folder per class is expected (CLASS/x.jpg or train/CLASS/x.jpg), or tar shards of such"
        )
    classes = tuple(sorted({label for _, label, _ in found}))
    if len(classes) < 2:
        raise DeepresError(f"{root}: only one class, {classes[0]!r}; at least two folders of images are needed to tell apart")
    number = {label: i for i, label in enumerate(classes)}
    splits: dict[str, list[Item]] = {}
    for split, label, item in found:
        splits.setdefault(split, []).append(Item(item.path, number[label], item.offset, item.length, item.member))
    return Listing(classes, {split: tuple(items) for split, items in splits.items()})


def fingerprint(items: Iterable[Item], *more: object) -> str:
    """A name for what was made of these files, that changes when any of them does."""
    digest = hashlib.sha256(repr(more).encode())
    stamps: dict[str, str] = {}
    for item in items:
        if item.path not in stamps:
            stat = Path(item.path).stat()
            stamps[item.path] = f"{stat.st_size} {stat.st_mtime_ns}"
        digest.update(f"{item.path} {stamps[item.path]} {item.offset} {item.label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]
