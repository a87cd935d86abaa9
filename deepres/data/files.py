"""Encoded images on disk: files, stretches of tar shards, members of zips; and the listing of a whole set."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deepres.errors import DeepresError


@dataclass(frozen=True, slots=True)
class Item:
    """One encoded image: a file, a stretch of a larger file, or a member of a zip."""

    path: str
    label: int
    offset: int = -1  # where in the shard, or of the member's header in the zip; -1 for a file of its own
    length: int = 0
    member: str = ""  # its name in the shard
    zipped: Literal["", "stored", "deflated"] = ""
    shown: str = ""  # what messages call it, such as FILE.parquet:row 3, where that is not its path and member

    @property
    def name(self) -> str:
        return self.shown or (f"{self.path}:{self.member}" if self.member else self.path)

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            if self.offset < 0:
                return file.read()
            file.seek(self.offset)
            if not self.zipped:
                return file.read(self.length)
            header = file.read(30)
            try:
                name, extra = struct.unpack("<HH", header[26:30])
                file.seek(name + extra, 1)
                data = file.read(self.length)
                return zlib.decompress(data, -15) if self.zipped == "deflated" else data
            except (struct.error, zlib.error) as error:
                raise OSError(f"{self.name}: damaged in the zip ({error})") from error


@dataclass(frozen=True)
class Listing:
    """Findings of a reader: the classes, the items of each split ("" where none is named), and sentences on what was left out."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[Item, ...]]
    notes: tuple[str, ...] = ()


def listed(
    name: str,
    found: Iterable[tuple[str, str, Item]],
    notes: Sequence[str] = (),
    *,
    numbers: bool = False,
    classes: Sequence[str] | None = None,
) -> Listing:
    """Number the classes of (split, class, item) as in ``classes``, by default in alphabetical order.

    ``numbers``: classes that are numbers are ordered by value, 9 before 10.

    Raises ``DeepresError`` where there are fewer than two, or no images.
    """
    found, notes = list(found), list(notes)
    if classes is None:
        found = _spelled_alike(found, notes)
        classes = sorted({label for _, label, _ in found})
        if numbers and all(label.isdecimal() for label in classes):
            classes.sort(key=int)
    elif not found:
        raise DeepresError(f"{name}: holds no labelled images")
    if len(classes) < 2:
        only = classes[0] if classes else "none"
        raise DeepresError(f"{name}: only one class, {only!r}; at least two folders of images are needed to tell apart")
    number = {label: i for i, label in enumerate(classes)}
    splits: dict[str, list[Item]] = {}
    for split, label, item in found:
        splits.setdefault(split, []).append(replace(item, label=number[label]))
    return Listing(tuple(classes), {split: tuple(items) for split, items in splits.items()}, tuple(notes))


def _spelled_alike(found: list[tuple[str, str, Item]], notes: list[str]) -> list[tuple[str, str, Item]]:
    """Take classes whose names differ in case, spaces, ``_`` or ``-`` alone as one, where no split has both."""
    alike: dict[str, dict[str, set[str]]] = {}
    for split, label, _ in found:
        key = re.sub(r"[\s_\-]+", " ", label).strip().casefold()
        alike.setdefault(key, {}).setdefault(label, set()).add(split)
    names: dict[str, str] = {}
    for spellings in alike.values():
        if len(spellings) > 1 and sum(map(len, spellings.values())) == len(set.union(*spellings.values())):
            usual = next((label for label, splits in spellings.items() if "train" in splits), min(spellings))
            names |= {label: usual for label in spellings if label != usual}
    if names:
        said = ", ".join(f"{label!r} as {usual!r}" for label, usual in list(names.items())[:3])
        notes.append(f"classes of the splits that are spelled alike are taken as one: {said}{' ...' if len(names) > 3 else ''}")
    return [(split, names.get(label, label), item) for split, label, item in found]


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
