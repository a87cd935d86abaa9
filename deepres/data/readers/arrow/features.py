"""Which column of a Parquet or Arrow file holds the images and which the labels, and the names of the classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepres.data.readers.table import LABELS, PATHS
from deepres.errors import DeepresError

IMAGES = (
    "image",
    "img",
    "images",
    "picture",
    "photo",
    "jpg",
    "png",
    "jpeg",
    "webp",
    "pixel_values",
    "bytes",
    "image_bytes",
    "content",
)


@dataclass(frozen=True)
class Columns:
    """The columns that are read."""

    image: str
    label: str
    names: tuple[str, ...] | None  # of the label's numbers, where the file or its folder says
    others: tuple[str, ...] = ()  # further columns of images and of class labels, which are not read


def choose_columns(path: Path, schema: Any) -> Columns:
    """Choose the columns of a file by Hugging Face's feature types, else by Arrow's types and usual names.

    Raises ``DeepresError`` where there is no column of encoded images, none of labels, or several and none of a usual name.
    """
    features = described(path, schema)
    images = [name for name in schema.names if _is_kind(features, name, "Image")]
    images = images or [field.name for field in schema if _holds_bytes(field.type)]
    images = images or [field.name for field in schema if field.name.lower() in PATHS and _is_text(field.type)]
    image = _preferred(images, IMAGES)
    if image is None:
        raise DeepresError(
            f"{path}: no column holds encoded images (bytes, or a struct of bytes and path), or their paths; "
            f"there are {', '.join(f'{field.name}: {field.type}' for field in schema)}"
        )
    classes = [name for name in schema.names if _is_kind(features, name, "ClassLabel")]
    rest = [field.name for field in schema if field.name != image and _is_class(field.type)]
    named = [name for name in rest if name.lower() in LABELS]
    label = _preferred(classes, LABELS) or _preferred(named, LABELS) or (rest[0] if len(rest) == 1 else None)
    if label is None:
        raise DeepresError(f"{path}: no column is called label; besides the images there are {', '.join(rest) or 'none'}")
    names = features.get(label, {}).get("names") or written(path).get(label)
    others = tuple(name for name in (*images, *classes) if name not in (image, label))
    return Columns(image, label, tuple(map(str, names)) if names else None, others)


def described(path: Path, schema: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's features by column, from the file's own metadata or ``dataset_info.json`` beside it."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        if not info.get("features") and (path.parent / "dataset_info.json").is_file():
            info = json.loads((path.parent / "dataset_info.json").read_text("utf-8"))
        features = info.get("features") or {}
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (ValueError, AttributeError, OSError) as error:
        raise DeepresError(f"{path}: the description of its features cannot be read ({error})") from error


def written(path: Path) -> dict[str, list[str]]:
    """Class names by column, from the ``dataset_info`` of the nearest README.md: ``class_label: names: '0': cat``."""
    for folder in list(path.absolute().parents)[:4]:
        readme = folder / "README.md"
        if readme.is_file():
            return dict(_class_labels(readme.read_text("utf-8", errors="replace").splitlines()))
    return {}


def _class_labels(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Only these lines of the YAML block are understood, so that no YAML library is needed."""
    column = ""
    names: list[str] | None = None
    for line in lines:
        if names is not None:
            if found := re.fullmatch(r"\s*'?\"?(\d+)'?\"?:\s*(.+?)\s*", line):
                if int(found[1]) == len(names):
                    names.append(found[2].strip("'\""))
                continue
            yield column, names
            names = None
        if found := re.fullmatch(r"\s*-\s*name:\s*(.+?)\s*", line):
            column = found[1].strip("'\"")
        elif re.fullmatch(r"\s*names:\s*", line):
            names = []
    if names is not None:
        yield column, names


def _preferred(found: Sequence[str], usual: Sequence[str]) -> str | None:
    by_name = {name.lower(): name for name in reversed(found)}
    return next((by_name[word] for word in usual if word in by_name), found[0] if found else None)


def _is_kind(features: dict[str, dict[str, Any]], name: str, kind: str) -> bool:
    return features.get(name, {}).get("_type") == kind


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_class(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_boolean(kind) or _is_text(kind))
