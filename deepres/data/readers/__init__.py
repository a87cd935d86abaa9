"""One reader for each way to store images; ``find`` asks them in order. Adding a way adds a file here and a row below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deepres.data.files import Listing
from deepres.data.readers import arrays, arrow, kaggle, pixels, table, tars
from deepres.data.readers.arrays import Arrays
from deepres.data.tree import folder_tree, zip_tree
from deepres.errors import DeepresError

__all__ = ["READERS", "Arrays", "Reader", "find"]


class Reader(NamedTuple):
    """A way to store images."""

    name: str
    takes: Callable[[Path], bool]
    read: Callable[[Path], Listing | Arrays]


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() in suffixes


READERS = (
    Reader("a table of pixels", pixels.is_pixels, pixels.read),
    Reader("a table of paths and labels", _suffix(".csv", ".tsv", ".jsonl"), table.read),
    Reader("a NumPy archive", _suffix(".npz"), arrays.npz),
    Reader("a Parquet or Arrow file", _suffix(".parquet", ".arrow"), arrow.read),
    Reader("a tar file", _suffix(".tar"), lambda path: tars.read(str(path), [path])),
    Reader("a zip", _suffix(".zip"), lambda path: kaggle.read(zip_tree(path))),
    Reader("CIFAR's Python files", lambda path: path.is_dir() and arrays.is_cifar(path), arrays.cifar),
    Reader("MNIST's idx files", lambda path: path.is_dir() and arrays.is_mnist(path), arrays.mnist),
    Reader("Parquet or Arrow files", lambda path: path.is_dir() and arrow.is_arrow_folder(path), arrow.read_folder),
    Reader("tar shards", lambda path: any(path.glob("*.tar")), lambda path: tars.read(str(path), sorted(path.glob("*.tar")))),
    Reader("tables of pixels", lambda path: path.is_dir() and pixels.is_pixels_folder(path), pixels.read_folder),
    Reader("a folder", Path.is_dir, lambda path: kaggle.read(folder_tree(path))),
)


def find(path: Path) -> Listing | Arrays:
    """Read ``path`` by the first reader that takes it.

    Raises ``DeepresError`` where none does, and what that reader raises.
    """
    for reader in READERS:
        if reader.takes(path):
            return reader.read(path)
    ways = ", ".join(reader.name for reader in READERS)
    raise DeepresError(f"{path}: not a way of storing images that is known; there are {ways}")
