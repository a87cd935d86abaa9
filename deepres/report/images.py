"""Images inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor


def data_uri(pixels: Tensor) -> str:
    """A (C, H, W) tensor of bytes as a PNG in a ``data:`` address, at most 168 pixels wide and high."""
    array = pixels.permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.thumbnail((168, 168))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
