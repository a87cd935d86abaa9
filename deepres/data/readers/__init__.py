"""One reader for each way to store images; ``find`` asks them in order. Adding a way adds a file here and a row below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deepres.data.decode import is_image_name
from deepres.data.files import Listing
from deepres.data.readers import archives, arrays, arrow, pixels, table, tars
from deepres.data.readers.arrays import Arrays
from deepres.errors import DeepresError

__all__ = ["READERS", "Arrays", "Reader", "find"]


class Reader(NamedTuple):
    """A way to store images."""

    name: str
    takes: Callable[[Path], bool]
    read: Callable[[Path], Listing | Arrays | Path]  # a path is a folder to be read instead


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() in suffixes


READERS = (
    Reader("a table of pixels", pixels.is_pixels, pixels.read),
    Reader("a table of paths and labels", _suffix(".csv", ".tsv", ".jsonl", ".json"), table.read),
    Reader("a NumPy archive", _suffix(".npz"), arrays.npz),
    Reader("a Parquet or Arrow file", _suffix(".parquet", ".arrow"), arrow.read),
    Reader("a tar file", _suffix(".tar"), lambda path: tars.read(str(path), [path])),
    Reader("a zip", _suffix(".zip"), archives.read_zip),
    Reader("a compressed tar file", archives.is_compressed_tar, archives.unpacked),
    Reader("CIFAR's Python files", lambda path: path.is_dir() and arrays.is_cifar(path), arrays.cifar),
    Reader("MNIST's idx files", lambda path: path.is_dir() and arrays.is_mnist(path), arrays.mnist),
    Reader("Parquet or Arrow files", lambda path: path.is_dir() and arrow.is_arrow_folder(path), arrow.read_folder),
    Reader("tar shards", lambda path: any(path.glob("*.tar")), lambda path: tars.read(str(path), sorted(path.glob("*.tar")))),
    Reader("a folder of one NumPy archive", lambda path: path.is_dir() and arrays.only_npz(path) is not None, arrays.npz_of),
    Reader("tables of pixels", lambda path: path.is_dir() and pixels.is_pixels_folder(path), pixels.read_folder),
    Reader("a folder", Path.is_dir, archives.read_any_folder),
)


def find(path: Path) -> Listing | Arrays:
    """Read ``path`` by the first reader that takes it.

    Raises ``DeepresError`` where none does, and what that reader raises.
    """
    for reader in READERS:
        if reader.takes(path):
            found = reader.read(path)
            return _find_unpacked(found, path) if isinstance(found, Path) else found
    if path.is_file() and is_image_name(path.name):
        raise DeepresError(
            f"{path}: is one image; a set is a folder of images or a file that lists them (`deepres predict` takes one)"
        )
    ways = ", ".join(reader.name for reader in READERS)
    raise DeepresError(f"{path}: not a way of storing images that is known; files and folders that are read: {ways}")


def _find_unpacked(folder: Path, archive: Path) -> Listing | Arrays:
    """The set in the folder of an archive's files, whose messages name the archive."""
    try:
        return find(folder)
    except DeepresError as error:
        raise DeepresError(str(error).replace(str(folder), str(archive))) from error
