"""Decoding one image: bounded cost, one kind of error, depths by type, only the formats that are asked for."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from deepres.data import Prepare, UnreadableImage, fit, image_suffixes, is_image_name, open_data, open_image, pixels


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 3000)])
def test_a_long_thin_image_costs_no_more_than_a_square_one(size: tuple[int, int]) -> None:
    image = open_image(encoded(Image.new("L", size, 77), "PNG"))
    process = psutil.Process()
    before = process.memory_info().rss
    ready = Prepare.usual(224).image(image)
    assert ready.shape == (3, 224, 224) and ready.unique().tolist() == [77]
    assert process.memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (33, 31), (300, 257)])
@pytest.mark.parametrize(("size", "resize"), [(32, 36), (32, 32), (64, 73), (24, 16)])
def test_fit_equals_resizing_the_whole_and_cropping(shape: tuple[int, int], size: int, resize: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8))
    scale = resize / min(image.size)
    whole = image.resize(tuple(max(resize, round(s * scale)) for s in image.size), Image.Resampling.BILINEAR)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    slow = whole.crop((left, top, left + size, top + size))
    assert (pixels(fit(image, size, resize)).int() - pixels(slow).int()).abs().max() <= 2  # of 255, on noise


def tiff(values: np.ndarray, bits: int | None = None) -> bytes:
    data = encoded(Image.fromarray(values), "TIFF")
    if bits is not None:  # the tag alone; the values stay in 16 bits
        data = data.replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, bits, 0))
    return data


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_images_are_scaled_by_type(kind: str) -> None:
    for values in ([0, 257, 65535], [0, 250, 100], [0, 4095, 260]):  # dark ones stay dark, whatever their maximum
        image = Image.fromarray(np.array([values], dtype=np.uint16))
        assert np.asarray(open_image(encoded(image, kind), 1))[0].tolist() == [round(v / 257) for v in values]
    byte = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert np.asarray(open_image(encoded(byte, kind), 1))[0].tolist() == [0, 7, 255]


def test_floats_are_of_zero_to_one() -> None:
    values = np.array([[0.0, 0.5, 1.0, 7.0, -1.0, np.nan, np.inf]], dtype=np.float32)
    assert np.asarray(open_image(tiff(values), 1))[0].tolist() == [0, 128, 255, 255, 0, 0, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "JPEG2000", "BMP"])
def test_damage_of_any_kind_is_the_images_own_fault(kind: str) -> None:
    good = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)), kind)
    random = np.random.default_rng(1)
    for _ in range(60):
        bad = bytearray(good[: int(random.integers(1, len(good)))] if random.random() < 0.3 else good)
        for at in random.integers(0, len(bad), 8):
            bad[at] = int(random.integers(256))
        with contextlib.suppress(UnreadableImage):  # any other exception fails
            read = open_image(bytes(bad))
            assert pixels(read).shape == (3, read.height, read.width)


def test_filters_of_warnings_are_the_same_after_decoding_in_threads() -> None:
    """Pillow's own warnings are ignored in every thread, and nobody else's."""
    odd = io.BytesIO()
    Image.new("P", (4, 4)).save(odd, "PNG", transparency=b"\x00\x80")  # of which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as threads:
            assert len(list(threads.map(open_image, [odd.getvalue()] * 2000))) == 2000
        added = [one for one in warnings.filters if one not in before]
        assert [one for one in warnings.filters if one in before] == before
        assert all(one[3] is not None and not one[3].match("deepres.data") for one in added)
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12", b"MM\0*\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_do_not_lose_the_image(exif: bytes, kind: str) -> None:
    image = open_image(encoded(Image.new("RGB", (6, 4), (9, 9, 9)), kind, exif=exif))
    assert image.size == (6, 4) and abs(np.asarray(image).astype(int) - 9).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_images_are_turned_as_pillow_turns_them(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)), kind, exif=exif)
    (tmp_path / "image").write_bytes(data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for source in (data, tmp_path / "image"):
        assert np.array_equal(np.asarray(open_image(source)), expected)


@pytest.mark.parametrize("fault", [RuntimeError, struct.error, MemoryError, IndexError, KeyError])
def test_whatever_a_decoder_raises(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object, **__: object) -> None:
        raise fault("damaged")

    monkeypatch.setattr(Image, "open", raises)
    with pytest.raises(UnreadableImage, match=r"x\.avif.*damaged"):
        open_image("x.avif")


def test_only_the_formats_that_are_asked_for_are_decoded() -> None:
    data = encoded(Image.new("RGB", (4, 4)), "TIFF")
    assert open_image(data, formats=("TIFF",)).size == (4, 4)
    with pytest.raises(UnreadableImage):
        open_image(data, formats=("JPEG", "PNG"))
    with pytest.raises(UnreadableImage):  # would start Ghostscript
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")


def test_suffixes_are_those_of_pillow() -> None:
    assert {".jpg", ".jfif", ".avif", ".jp2", ".webp", ".tiff", ".png"} <= image_suffixes()
    assert not {".h5", ".mpg", ".eps"} & image_suffixes()
    assert is_image_name("a/b.JPEG") and not is_image_name("a.jpg/b") and not is_image_name("jpg")


def test_transparency_of_every_mode_is_laid_on_white() -> None:
    grey = Image.new("L", (4, 4), 9)
    assert np.asarray(open_image(encoded(grey, "PNG", transparency=9))).min() == 255


def test_home_is_expanded_in_data_paths(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small_folder.parent))
    assert len(open_data(f"~/{small_folder.name}").classes) == 3
