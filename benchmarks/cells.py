"""Photographs of single blood cells, cut out of a Pascal VOC folder along its boxes: a folder per class, for classifying at any size.

    python -m benchmarks.cells --voc ../shared/data/bccd-voc --out runs/cells

Cells of one photograph stay in one split: those of the VOC test list are the test split. Crops are square, a quarter wider than
the box, so that a cell's own size is no clue.
"""

from __future__ import annotations

import argparse
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

MARGIN = 1.25  # the crop's side against the longer side of the box
LEAST = 16  # pixels; smaller boxes are slips of the annotator


def cells(voc: Path, name: str, most: int) -> Iterator[tuple[str, Image.Image]]:
    """(class, crop) of each box of one photograph; of a class at most ``most``, always the same ones."""
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for item in ElementTree.parse(voc / "Annotations" / f"{name}.xml").getroot().iter("object"):
        box = tuple(float(item.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax"))
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST:
            boxes.setdefault(item.findtext("name", ""), []).append(box)
    with Image.open(voc / "JPEGImages" / f"{name}.jpg") as image:
        for kind, mine in boxes.items():
            for left, top, right, bottom in random.Random(name).sample(mine, min(most, len(mine))):
                half = MARGIN * max(right - left, bottom - top) / 2
                x, y = (left + right) / 2, (top + bottom) / 2
                bounds = (max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half))
                yield kind, image.crop(tuple(map(round, bounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cells"))
    parser.add_argument("--most", type=int, default=8, help="cells of one class from one training photograph")
    options = parser.parse_args()
    for part, split in (("trainval", "train"), ("test", "test")):
        names = (options.voc / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
        most = options.most if split == "train" else 10**6
        count = 0
        for name in names:
            for kind, crop in cells(options.voc, name, most):
                folder = options.out / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                crop.save(folder / f"{count:05d}.png")
                count += 1
        print(f"{split}: {count} cells of {len(names)} photographs")


if __name__ == "__main__":
    main()
