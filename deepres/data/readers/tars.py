"""Tar shards: members CLASS/NAME or SPLIT/CLASS/NAME, or webdataset's KEY.jpg beside KEY.cls or KEY.json."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from deepres.data.decode import is_image_name
from deepres.data.files import Item, Listing, listed
from deepres.data.readers.classes import split_of
from deepres.errors import DeepresError


def read(name: str, shards: Sequence[Path]) -> Listing:
    """The headers are read once; then every image can be read by itself, in any order, so that tar shards shuffle over the whole set
    and a run resumes in mid-epoch exactly as with loose files.

    Raises ``DeepresError`` for a damaged or compressed tar file, and where it holds no labelled images.
    """
    found = [one for shard in shards for one in _members(shard)]
    if not found:
        raise DeepresError(f"{name}: no images found in its tar files, with a class's folder or a .cls file for each")
    return listed(name, found, numbers=all(item.member.count("/") == 0 for _, _, item in found))


def _members(shard: Path) -> Iterator[tuple[str, str, Item]]:
    named = next((part for word in re.split(r"[-_.]", shard.stem) if (part := split_of(word))), "")
    labels: dict[str, str] = {}
    images: list[tuple[PurePosixPath, Item]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if is_image_name(path.name):
                    images.append((path, Item(str(shard), -1, member.offset_data, member.size, member.name)))
                elif path.suffix in (".cls", ".json"):
                    file = tar.extractfile(member)
                    labels[_key(path)] = _label(shard, path, file.read() if file else b"")
    except (tarfile.TarError, OSError) as error:
        raise DeepresError(f"{shard}: not a whole, uncompressed tar file ({error})") from error
    for path, item in images:
        label = labels.get(_key(path))
        if label:
            yield named, label, item
        elif len(path.parts) > 1 and not labels:
            yield (split_of(path.parts[-3]) or named if len(path.parts) > 2 else named), path.parts[-2], item


def _key(path: PurePosixPath) -> str:
    return f"{path.parent}/{path.name.partition('.')[0]}"  # webdataset's: up to the first dot of the name


def _label(shard: Path, path: PurePosixPath, content: bytes) -> str:
    text = content.decode("utf-8", errors="surrogateescape").strip()
    if path.suffix == ".cls":
        return text
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DeepresError(f"{shard}:{path}: not JSON ({error})") from error
    words = ("cls", "label", "class", "class_name")
    return next((str(record[word]) for word in words if word in record), "") if isinstance(record, dict) else str(record)
