"""From an image file's bytes to a Pillow image in 8 bits: any mode, depth and orientation, with one kind of error."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from deepres.errors import DeepresError

# Formats that Pillow only recognises, or hands to another program (PostScript to Ghostscript): never decoded.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_ORIENTATION = 274  # tag of EXIF, and what undoes each of its values
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)  # orientations in which width and height change places
_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # a filter of warnings, as the module `warnings` keeps it
_TIFF = (b"II*\0", b"MM\0*")  # how such a file begins


class UnreadableImage(DeepresError):
    """A file that should be an image and cannot be decoded."""


class OversizedImage(UnreadableImage):
    """An image of more pixels than Pillow's limit against decompression bombs, ``Image.MAX_IMAGE_PIXELS``."""


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that Pillow decodes here, by its own names: ``"JPEG"``, ``"PNG"``, ``"AVIF"``, ..."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _NOT_DECODED)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of those formats in Pillow's registry, in lower case with their dot: ``".jpg"``, ``".jfif"``, ``".jp2"``, ..."""
    formats = set(image_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def is_image_name(name: str) -> bool:
    """Return whether a file's name ends as an image's does."""
    dot = name.rfind(".")
    return dot > name.rfind("/") and name[dot:].lower() in image_suffixes()


def suffix_of(data: bytes) -> str:
    """The usual suffix of an encoded image, such as ``".png"``; empty where its format is not known."""
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            name = image.format or ""
    except Exception:  # as in ``open_image``
        return ""
    usual = {"JPEG": ".jpg", "TIFF": ".tif"}.get(name, f".{name.lower()}")
    known = [suffix for suffix, one in Image.registered_extensions().items() if one == name]
    return usual if usual in known else next(iter(known), "")


def grey_bytes(values: np.ndarray, full: float) -> np.ndarray:
    """Scale values of [0, ``full``] to bytes; what lies outside is clipped, and not-a-number is black."""
    bounded = np.clip(np.nan_to_num(values.astype(np.float64), nan=0.0), 0, full)
    return (bounded * (255.0 / full)).round().astype(np.uint8)


def _full_scale(image: Image.Image) -> float:
    """The value that becomes 255 in a deep grey image. It depends on the type alone, so that equal values stay equal in a set."""
    if image.mode == "F":
        return 1.0
    tags = getattr(image, "tag_v2", {})
    bits, signed = _first(tags.get(_BITS)), _first(tags.get(_SAMPLE_FORMAT)) == 2
    if bits == 16 and signed:
        return 32767.0
    return 4095.0 if bits == 12 else 65535.0  # Pillow puts 16-bit PNG and PGM files into mode "I", too


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value


def _grey(image: Image.Image, full: float, tags: Mapping[int, object]) -> Image.Image:
    """8 bits of an image of integers or floats, with what Pillow does for 8 bits only: TIFF's white zero, PNG's transparent value."""
    values = np.asarray(image)
    if values.dtype == np.int32 and _first(tags.get(_SAMPLE_FORMAT)) == 1:
        values = values.view(np.uint32)  # Pillow's mode has a sign where the file's type has none
    grey = grey_bytes(values, full)
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Upright, opaque, 8 bits, in mode RGB or L."""
    full, tags = _full_scale(image), dict(getattr(image, "tag_v2", {}))
    image.load()  # before its orientation is asked for, so that what is raised by the pixels is not taken for damaged EXIF data
    image = image.transpose(_TURNS[turn]) if (turn := orientation_of(image)) in _TURNS else image
    if image.mode.startswith(("I", "F")):
        image = _grey(image, full, tags)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("LAB", "HSV"):
        image = image.convert("RGB")  # Pillow has no way from these to grey
    return image.convert("L" if channels == 1 else "RGB")


def orientation_of(image: Image.Image) -> int:
    """The orientation, 1 to 8, in an image's EXIF data; 1, which is upright, where there is none or the data are damaged.

    Raises ``OSError`` for an image that is cut off.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except OSError:
        raise
    except Exception:  # of damaged data getexif raises SyntaxError, struct.error, ...
        return 1


def ignore_pillows_warnings() -> None:
    """Ignore what Pillow warns of, from now on. What cannot be decoded is an error here, and the rest is nothing to act on.

    ``warnings.catch_warnings`` would change the filters of all threads for a while, and of two threads that overlap the second would
    put back the first one's, for good.
    """
    if _PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _starts(source: bytes | str | Path) -> bytes:
    """The first four bytes."""
    if isinstance(source, bytes):
        return source[:4]
    with open(source, "rb") as file:
        return file.read(4)


def open_image(
    source: bytes | str | Path,
    channels: int = 3,
    *,
    draft: int | None = None,
    formats: Sequence[str] | None = None,
    check: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """A Pillow image in mode RGB (``channels`` 3) or L (1), upright; transparency is laid on white.

    Deep images are scaled by their type: 16 bits by 1/257, 12-bit TIFF by 255/4095, floats by 255 and clipped, so that a float
    image has to lie in [0, 1]. 12-bit values in a 16-bit container are read as 16 bits, and are dark. Of integers with a sign those
    below 0 are black: 16 bits are scaled by 255/32767. Integers of 32 bits are taken for values of 16 bits and clipped.

    ``draft``: a JPEG may be decoded at a half, a quarter or an eighth, with no side under this many pixels; faster, not exact.
    ``formats``: the formats (Pillow's names, such as ``"JPEG"``) that may be decoded; default: all of ``image_formats()``.
    ``check`` is called with the image before its pixels are decoded, and refuses it by raising.

    Raises ``UnreadableImage`` naming the file, whatever went wrong inside; what ``check`` raises if it is a ``DeepresError``.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    known = tuple(formats or image_formats())
    ignore_pillows_warnings()
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=known) as image:
            if image.width * image.height > (
                Image.MAX_IMAGE_PIXELS or math.inf
            ):  # Pillow itself only warns up to twice as many
                raise Image.DecompressionBombError(f"{image.width:,} x {image.height:,} pixels")
            if check is not None:
                check(image)
            if draft is not None:
                image.draft(None, (draft, draft))
            return _plain(image, channels)
    except DeepresError:
        raise
    except Image.DecompressionBombError as error:
        raise OversizedImage(f"{name}: refused, it would unpack to too many pixels ({error})") from error
    except UnidentifiedImageError as error:
        taken = f", which are {', '.join(known)}" if formats else ""
        if "TIFF" in known and _starts(source) in _TIFF:
            why = "a TIFF of a depth or of colours that Pillow does not decode; save it in 8 or 16 bits, or in one channel of 32-bit floats"
            raise UnreadableImage(f"{name}: not an image that can be read ({why})") from error
        raise UnreadableImage(f"{name}: not an image that can be read (of none of the known formats{taken})") from error
    except Exception as error:  # decoders raise RuntimeError, struct.error, MemoryError, IndexError, ... at damaged files
        raise UnreadableImage(f"{name}: not an image that can be read ({str(error) or type(error).__name__})") from error
