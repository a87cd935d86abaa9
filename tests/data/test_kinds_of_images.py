"""Kinds of image files, each with the pixels that it has to become, by whichever reader it comes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deepres.data import Resident, UnreadableImage, open_data, open_image

RAMP = np.arange(144, dtype=np.float64).reshape(12, 12) / 143  # 0 to 1, unlike in all four corners


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(full: float, kind: type[np.generic]) -> Image.Image:
    return Image.fromarray((RAMP * full).round().astype(kind) if full > 1 else RAMP.astype(kind))


def twelve_bits() -> bytes:
    """A TIFF file of 12 bits a sample, two of them in three bytes, as scanners and X-ray machines write."""
    values = (RAMP * 4095).round().astype(int).ravel().tolist()
    bits = "".join(f"{value:012b}" for value in values)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    tags = ((256, 12), (257, 12), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 12), (279, len(data)))
    directory = (
        struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def tagged(bits: int, form: int, values: np.ndarray, zero: int = 1) -> bytes:
    """A grey TIFF file. ``form``: 1 unsigned, 2 signed, 3 floats; ``zero``: 0 where zero is white, 1 where it is black."""
    data = values.tobytes()
    tags = (
        (256, 12),
        (257, 12),
        (258, bits),
        (259, 1),
        (262, zero),
        (273, 8),
        (277, 1),
        (278, 12),
        (279, len(data)),
        (339, form),
    )
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def scaled(full: int, kind: str) -> np.ndarray:
    return (RAMP * full).round().astype(kind)


def transparent_sixteen(value: int) -> bytes:
    """A PNG of 16-bit grey with one transparent value."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in scaled(65535, ">u2")))
    head = struct.pack(">IIBBBBB", 12, 12, 16, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"tRNS", struct.pack(">H", value)), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def portable(most: int) -> bytes:
    return b"P5 12 12 %d\n" % most + (RAMP * most).round().astype(">u2").tobytes()


def palette() -> bytes:
    image = grey(255, np.uint8).convert("P")
    return saved(image, "PNG", transparency=0)


def turned(orientation: int) -> bytes:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that give such a file
    exif = Image.Exif()
    exif[274] = orientation
    image = grey(255, np.uint8)
    return saved(image.transpose(Image.Transpose(undo[orientation])) if orientation in undo else image, "PNG", exif=exif)


def frames(kind: str) -> bytes:
    first = grey(255, np.uint8)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return saved(
        first.convert("RGB") if lossless else first,
        kind,
        save_all=True,
        append_images=[Image.new("L", (12, 12))] * 2,
        **lossless,
    )


def cmyk(kind: str) -> bytes:
    colours = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    return saved(grey(255, np.uint8).convert("RGB").convert("CMYK"), kind, **colours)


L, EXACT = grey(255, np.uint8), 0.51
# how the file is made, and by how much of 255 a pixel may be off
KINDS: dict[str, tuple[Callable[[], bytes], float]] = {
    "8 bits.png": (lambda: saved(L, "PNG"), EXACT),
    "16 bits.png": (lambda: saved(grey(65535, np.uint16), "PNG"), EXACT),
    "16 bits.tiff": (lambda: saved(grey(65535, np.uint16), "TIFF"), EXACT),
    "12 bits.tiff": (twelve_bits, EXACT),
    "float.tiff": (lambda: saved(grey(1, np.float32), "TIFF"), EXACT),
    "12 bits.pgm": (lambda: portable(4095), EXACT),
    "16 bits.pgm": (lambda: portable(65535), EXACT),
    "cmyk.jpg": (lambda: cmyk("JPEG"), 4),
    "cmyk.tif": (lambda: cmyk("TIFF"), 1.01),
    "opaque.png": (lambda: saved(Image.merge("LA", (L, Image.new("L", L.size, 255))), "PNG"), EXACT),
    "animation.gif": (lambda: frames("GIF"), EXACT),
    "animation.webp": (lambda: frames("WEBP"), 1.01),
    "palette.bmp": (lambda: saved(L.convert("P"), "BMP"), EXACT),
    **{f"turned {i}.png": (lambda i=i: turned(i), EXACT) for i in range(1, 9)},
}


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(root: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return root / "set.zip"


def shard(root: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(root / "set.tar", "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root / "set.tar"


def rows(root: Path, files: dict[str, bytes]) -> pa.Table:
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    return pa.table(
        {"image": images, "label": [name.split("/")[-2] for name in files], "split": [name.split("/")[0] for name in files]}
    )


def parquet(root: Path, files: dict[str, bytes]) -> Path:
    for part in ("train", "test"):
        pq.write_table(rows(root, {n: c for n, c in files.items() if n.startswith(part)}), root / f"{part}.parquet")
    return root


def arrow(root: Path, files: dict[str, bytes]) -> Path:
    for part in ("train", "test"):
        table = rows(root, {n: c for n, c in files.items() if n.startswith(part)})
        with pa.ipc.new_stream(root / f"{part}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    return root


def listed(root: Path, files: dict[str, bytes]) -> Path:
    folder(root, files)
    lines = [json.dumps({"path": name, "split": name.split("/")[0], "label": name.split("/")[1]}) for name in files]
    (root / "list.jsonl").write_text("\n".join(lines))
    return root / "list.jsonl"


@pytest.mark.parametrize("make", [folder, zipped, shard, parquet, arrow, listed])
def test_every_reader_gives_the_right_pixels(make: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path) -> None:
    files = {f"test/a/{name}": encode() for name, (encode, _) in KINDS.items()}
    files |= {f"{part}/b/{i}.png": saved(Image.new("L", (12, 12), i), "PNG") for part in ("train", "test") for i in range(4)}
    files |= {f"train/a/{i}.png": saved(Image.new("L", (12, 12), i), "PNG") for i in range(4)}
    files["test/b/cut.png"] = files["test/a/8 bits.png"][:60]
    data = open_data(make(tmp_path, files), channels=1)
    assert isinstance(data.test, Resident) and len(data.unreadable) == 1 and data.unreadable[0].endswith(("cut.png", "row 25"))
    mine = data.test.pixels[data.test.labels == data.classes.index("a"), 0]
    order = [*KINDS] if make in (parquet, arrow, listed, shard) else sorted(KINDS)
    assert len(mine) == len(order)
    for name, pixels in zip(order, mine, strict=True):
        off = (pixels.double() - torch.from_numpy(RAMP * 255)).abs().max()
        assert off <= KINDS[name][1], (name, float(off))


DEEP: dict[str, tuple[bytes, np.ndarray]] = {
    "16 bits, zero is white": (tagged(16, 1, scaled(65535, "<u2"), 0), 255 - RAMP * 255),
    "floats, zero is white": (tagged(32, 3, RAMP.astype("<f4"), 0), 255 - RAMP * 255),
    "16 bits with a sign": (tagged(16, 2, scaled(32767, "<i2")), RAMP * 255),
    "16 bits, half below 0": (
        tagged(16, 2, (scaled(65534, "<i4") - 32767).astype("<i2")),
        np.clip((RAMP * 65534 - 32767) / 32767 * 255, 0, 255),
    ),
    "32 bits above half of their range": (tagged(32, 1, np.full((12, 12), 2**31 + 1, "<u4")), RAMP * 0 + 255),
    "one transparent value of 16 bits": (transparent_sixteen(0), np.where(RAMP == 0, 255, RAMP * 255)),
    "not a number and infinities": (
        tagged(32, 3, np.where(RAMP < 0.3, np.nan, np.where(RAMP < 0.6, np.inf, -np.inf)).astype("<f4")),
        np.where((RAMP >= 0.3) & (RAMP < 0.6), 255.0, 0.0),
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_scaled_by_their_type(name: str, channels: int) -> None:
    data, wanted = DEEP[name]
    pixels = np.asarray(open_image(data, channels), dtype=float).reshape(12, 12, -1)
    assert np.abs(pixels - wanted[..., None]).max() <= EXACT


def test_a_tiff_that_cannot_be_decoded_is_named_as_one() -> None:
    for bits, kind in ((16, "<f2"), (64, "<f8")):
        with pytest.raises(UnreadableImage, match=r"a TIFF of a depth .* save it in 8 or 16 bits"):
            open_image(tagged(bits, 3, RAMP.astype(kind)))


def test_colours_without_a_way_to_grey_go_by_rgb() -> None:
    colours = Image.merge("LAB", (grey(255, np.uint8), *[Image.new("L", (12, 12), 128)] * 2))
    read = np.asarray(open_image(saved(colours, "TIFF"), 1), dtype=int)
    assert read[0, 0] == 0 and read[-1, -1] > 250


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_on_white(channels: int) -> None:
    read = np.asarray(open_image(palette(), channels), dtype=int).reshape(12, 12, -1)
    assert (read[0, 0] == 255).all() and abs(read[-1, -1] - 255).max() <= 1 and abs(read[5, 5] - RAMP[5, 5] * 255).max() <= 1
    half = Image.merge("RGBA", (*[Image.new("L", (4, 4), 100)] * 3, Image.new("L", (4, 4), 128)))
    assert np.asarray(open_image(saved(half, "PNG"), 3)).ravel().tolist() == [177] * 48  # 100 and 255, about half of each


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_unreadable(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    whole = saved(noise, kind)
    with pytest.raises(UnreadableImage):
        open_image(whole[: int(len(whole) * share)])
