"""Small images whose pixels tell them apart, written as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def picture(value: int, side: int = 12) -> bytes:
    """A PNG file of one grey."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, names: Sequence[str]) -> Path:
    """The i-th file has the grey i."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    return root


def tree(*splits: str, each: int = 6) -> list[str]:
    return [f"{split}/{label}/{i}.png".lstrip("/") for split in splits for label in ("cat", "dog") for i in range(each)]
