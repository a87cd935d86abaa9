"""Deterministic crops of an image: its short side to a length, then a window; in one call whose cost is bounded."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """The (width, height) of an image when its short side has ``short`` pixels."""
    scale = short / min(width, height)
    return max(short, round(width * scale)), max(short, round(height * scale))


def window(
    image: Image.Image, short: int, box: tuple[int, int, int, int], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Resize ``image`` to a short side of ``short`` pixels and crop it to ``box`` (left, top, right, bottom).

    The pixels are those of resizing the whole image and cropping, but only the window is computed: an image of 1 x 10,000 pixels costs
    no more than a square one.
    """
    left, top, right, bottom = box
    wide, tall = scaled(image.width, image.height, short)
    across, down = image.width / wide, image.height / tall
    source = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((right - left, bottom - top), resample, box=source)


def fit(
    image: Image.Image, size: int, resize: int | None = None, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """Short side to ``resize`` (default ``size``), then the centre ``size`` x ``size``."""
    resize = resize or size
    if image.size == (size, size) and resize == size:
        return image
    wide, tall = scaled(image.width, image.height, resize)
    left, top = (wide - size) // 2, (tall - size) // 2
    if left < 0 or top < 0:  # a crop larger than the resized image has a black border
        inner = (max(left, 0), max(top, 0), min(left + size, wide), min(top + size, tall))
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(window(image, resize, inner, resample), (inner[0] - left, inner[1] - top))
        return canvas
    return window(image, resize, (left, top, left + size, top + size), resample)


def squash(image: Image.Image, size: int, resize: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Both sides to ``resize``, whatever their ratio, then the centre ``size`` x ``size``; ``size`` is at most ``resize``."""
    start = (resize - size) // 2
    across, down = image.width / resize, image.height / resize
    box = (start * across, start * down, (start + size) * across, (start + size) * down)
    return image.resize((size, size), resample, box=box)


def pixels(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 (C, H, W)."""
    tensor = torch.from_numpy(np.array(image, dtype=np.uint8))
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()
