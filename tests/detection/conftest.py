"""A data set of coloured rectangles on grey, small enough to learn in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

SHAPES = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def rectangles(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write a Pascal VOC folder of 64 x 64 images with one or two rectangles each."""
    generator = torch.Generator().manual_seed(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    number = 0
    for split, count in counts.items():
        names = []
        for _ in range(count):
            image = Image.new("RGB", (64, 64), (120, 120, 120))
            pen, objects = ImageDraw.Draw(image), ""
            for half in range(1 + int(torch.rand(1, generator=generator) < 0.5)):
                left, top, wide, tall = (int(v) for v in torch.rand(4, generator=generator) * torch.tensor([8.0, 30, 10, 14]))
                left, wide, tall = left + 32 * half, 14 + wide, 18 + tall
                name = ("red", "blue")[int(torch.rand(1, generator=generator) < 0.5)]
                box = (left, top, min(left + wide, 63), min(top + tall, 63))
                pen.rectangle(box, fill=SHAPES[name])
                corners = "".join(f"<{k}>{v + 1}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
                objects += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>\n"
            image.save(folder / "JPEGImages" / f"{number:03}.png")
            (folder / "Annotations" / f"{number:03}.xml").write_text(f"<annotation>\n{objects}</annotation>")
            names.append(f"{number:03}")
            number += 1
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rectangles(tmp_path_factory.mktemp("boxes") / "shapes", {"train": 24, "val": 8, "test": 8})
