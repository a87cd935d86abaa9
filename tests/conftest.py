"""What the tests share: small sets of real images, and a cache folder that is thrown away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 24 images of 16x16, in one folder each."""
    return write_digits(tmp_path_factory.mktemp("small"), side=16, per_class=24)


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 classes of 12 training and 12 held-out images of 120x120, which are streamed."""
    return write_digits(tmp_path_factory.mktemp("large"), side=120, per_class=12, classes=2, splits=("train", "val"))
