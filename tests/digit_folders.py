"""Folders of small images for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path, *, side: int, per_class: int, classes: int = 3, splits: tuple[str, ...] = ()) -> Path:
    """Handwritten digits as PNG files, a folder per class, below ROOT or each of its splits."""
    digits = load_digits()
    for label in range(classes):
        images = digits.images[digits.target == label]
        for part, split in enumerate(splits or ("",)):
            folder = root / split / f"digit-{label}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = (images[part * per_class + i] * 15.9).astype(np.uint8)
                Image.fromarray(pixels).resize((side, side)).convert("RGB").save(folder / f"{i:03d}.png")
    return root
