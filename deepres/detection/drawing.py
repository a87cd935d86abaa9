"""Boxes drawn into pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deepres.data import open_image
from deepres.detection.coco_protocol import ImageDetections

# One colour a class, told apart on photographs; they repeat after ten.
BOX_COLOURS = (
    *("#2f6fde", "#d1495b", "#2a9d8f", "#e8963a", "#9b5de5"),
    *("#5aa9e6", "#f15bb5", "#7cb518", "#c08552", "#8a93a3"),
)


def draw_boxes(image: Image.Image, found: ImageDetections, classes: Sequence[str], *, threshold: float = 0.5) -> Image.Image:
    """``image`` with the boxes of at least ``threshold`` confidence, each with its class and confidence in percent."""
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    thick = max(1, round(min(image.size) / 240))
    font = ImageFont.load_default(max(10, min(image.size) // 32))
    for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
        if score < threshold:
            continue
        colour = BOX_COLOURS[label % len(BOX_COLOURS)]
        pen.rectangle(box, outline=colour, width=thick)
        text = f"{classes[label]} {100 * score:.0f}"
        left, top, right, bottom = pen.textbbox((box[0], max(0, box[1])), text, font=font)
        pen.rectangle((left, top, right + 2, bottom + 2), fill=colour)
        pen.text((box[0], max(0, box[1])), text, fill="white", font=font)
    return image


def drawn(path: Path, found: ImageDetections, classes: Sequence[str], *, threshold: float = 0.5) -> np.ndarray:
    """``draw_boxes`` of an image's file, as (H, W, 3) uint8."""
    return np.asarray(draw_boxes(open_image(path), found, classes, threshold=threshold))
