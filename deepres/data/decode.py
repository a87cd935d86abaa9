"""From an image file's bytes to pixels, whatever its mode: grey, RGBA, palette, CMYK, 16 bit, rotated by EXIF."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deepres.errors import DeepresError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})


class UnreadableImage(DeepresError):
    """A file that should be an image and cannot be decoded."""


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 and 32 bit grey images to 8 bits; Pillow's own conversion would clip them."""
    values = np.asarray(image).astype(np.float64)
    top = values.max(initial=0.0)
    full = 255.0 if top <= 255 else 65535.0 if top <= 65535 else top
    return Image.fromarray((np.clip(values, 0, full) * (255.0 / full)).round().astype(np.uint8))


def open_image(source: bytes | str | Path, channels: int = 3, *, draft: int | None = None) -> Image.Image:
    """A Pillow image in mode RGB (``channels`` 3) or L (1), upright; transparency is laid on white.

    ``draft``: a JPEG may be decoded at a fraction of its size, with no side under this many pixels; faster, not exact.

    Raises ``UnreadableImage`` naming the file.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            if draft is not None:
                image.draft(None, (draft, draft))
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):
                image = _eight_bits(image)
            if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name}: not an image that can be read ({error})") from error
    except Warning as error:
        raise UnreadableImage(f"{name}: refused, it would unpack to too many pixels ({error})") from error


def fit(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """Short side to ``resize`` (default ``size``), then the centre ``size`` x ``size``."""
    resize = resize or size
    width, height = image.size
    if (width, height) != (size, size) or resize != size:
        scale = resize / min(width, height)
        image = image.resize((max(resize, round(width * scale)), max(resize, round(height * scale))), Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return image


def pixels(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 (C, H, W)."""
    array = np.array(image, dtype=np.uint8)
    tensor = torch.from_numpy(array)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()
