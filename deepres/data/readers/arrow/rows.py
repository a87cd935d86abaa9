"""Offsets of the encoded images in a Parquet or Arrow file, by which each is read without pyarrow.

An uncompressed Arrow file is used as it is. The pages of a Parquet file are compressed as a whole, so its images are copied once, one after
the other, into a file of the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepres.errors import DeepresError
from deepres.paths import cache_folder

BATCH = 64  # rows that are in memory at a time


@dataclass(frozen=True)
class Column:
    """The images of a file, row by row: bytes ``start`` to ``start + length`` of ``path``, or where that is -1, in a file of their own."""

    path: str
    start: np.ndarray  # int64, -1 where the file holds no bytes
    length: np.ndarray
    paths: list[str | None]  # what the rows say of the images' own paths
    copied: int = 0  # bytes that were copied into the cache


def stream(path: Path) -> tuple[Any, Any]:
    """(the file's schema, an iterator over its batches of rows): of Parquet, and of Arrow's stream and file formats.

    Raises ``DeepresError`` for a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # pages as they are needed, not the row group
            return file.schema_arrow, file
        whole = pa.memory_map(str(path)).read_buffer()
        return pa.ipc.open_stream(whole).schema, whole
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DeepresError(f"{path}: not a whole Parquet or Arrow file ({error})") from error


def record_batches(path: Path, source: Any, column: str) -> Iterator[Any]:
    """One column of the file, in pieces."""
    import pyarrow as pa

    try:
        if isinstance(source, pa.Buffer):
            for batch in pa.ipc.open_stream(source):
                yield batch.column(column)
        else:
            for batch in source.iter_batches(BATCH, columns=[column]):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        raise DeepresError(f"{path}: damaged ({error})") from error


def locate_images(path: Path, source: Any, column: str) -> Column:
    """Find the bytes of every image of a file.

    Raises ``DeepresError`` for a damaged file, and where the cache folder has no room for a copy.
    """
    import pyarrow as pa

    if isinstance(source, pa.Buffer):
        found = _in_place(path, source, column)
        if found is not None:
            return found
    return _copied(path, source, column)


def _in_place(path: Path, whole: Any, column: str) -> Column | None:
    """None where the batches are compressed, or their bytes lie elsewhere for another reason."""
    starts, lengths, paths = [], [], []
    for piece in record_batches(path, whole, column):
        encoded, texts = _parts(piece)
        paths += texts
        count = len(piece)
        if encoded is None or encoded.null_count == count:
            starts.append(np.full(count, -1))
            lengths.append(np.zeros(count, np.int64))
            continue
        _, offsets, data = encoded.buffers()
        base = data.address - whole.address
        if not 0 <= base <= whole.size:
            return None
        kind = np.int64 if str(encoded.type).startswith("large") else np.int32
        edges = np.frombuffer(offsets, kind)[encoded.offset : encoded.offset + count + 1].astype(np.int64)
        missing = np.asarray(encoded.is_null())
        starts.append(np.where(missing, -1, base + edges[:-1]))
        lengths.append(np.where(missing, 0, np.diff(edges)))
    return Column(str(path), _joined(starts), _joined(lengths), paths)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def _parts(piece: Any) -> tuple[Any, list[str | None]]:
    """(the array of bytes or None, the paths) of a piece of an image column."""
    import pyarrow as pa

    if pa.types.is_struct(piece.type):
        names = [piece.type.field(i).name for i in range(piece.type.num_fields)]
        fields = dict(zip(names, piece.flatten(), strict=True))  # flatten(), unlike field(), applies the struct's own nulls
        texts = fields["path"].to_pylist() if "path" in fields else [None] * len(piece)
        encoded = fields.get("bytes")
    elif pa.types.is_string(piece.type) or pa.types.is_large_string(piece.type):
        encoded, texts = None, piece.to_pylist()
    else:
        encoded, texts = piece, [None] * len(piece)
    if encoded is not None and not (pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)):
        encoded = encoded.cast(pa.large_binary())
    return encoded, texts


def _copied(path: Path, source: Any, column: str) -> Column:
    stat = path.stat()
    key = hashlib.sha256(repr((str(path.absolute()), stat.st_size, stat.st_mtime_ns, column)).encode()).hexdigest()[:24]
    target = cache_folder() / "rows" / f"{key}.bin"
    index = target.with_suffix(".npy")
    try:
        lengths = np.load(index)
        if target.stat().st_size != lengths.clip(min=0).sum():
            raise ValueError
        paths = (
            [text for piece in record_batches(path, source, column) for text in _parts(piece)[1]] if (lengths < 0).any() else []
        )
    except (OSError, ValueError, EOFError):
        _need_room(path, source, column, target.parent)
        partial = target.with_suffix(f".{os.getpid()}.part")
        try:
            with open(partial, "wb") as file:
                lengths, paths = _copy(record_batches(path, source, column), file)
            os.replace(partial, target)
            with open(partial, "wb") as file:
                np.save(file, lengths)
            os.replace(partial, index)
        except OSError as error:
            raise DeepresError(f"{target.parent}: its images cannot be copied there ({error.strerror or error})") from error
        finally:
            partial.unlink(missing_ok=True)
    sizes = lengths.clip(min=0)
    starts = np.where(lengths < 0, -1, np.cumsum(sizes) - sizes)
    return Column(str(target), starts, sizes, paths or [None] * len(lengths), int(sizes.sum()))


def _copy(pieces: Iterator[Any], file: BinaryIO) -> tuple[np.ndarray, list[str | None]]:
    """Write the images one after the other. Gives their lengths, -1 where there are no bytes, and their paths."""
    lengths: list[int] = []
    paths: list[str | None] = []
    for piece in pieces:
        encoded, texts = _parts(piece)
        paths += texts
        for value in encoded if encoded is not None else [None] * len(piece):
            data = value.as_buffer() if value is not None and value.is_valid else None
            lengths.append(data.size if data is not None else -1)
            if data is not None:
                file.write(data)
    return np.array(lengths, np.int64), paths


def _need_room(path: Path, source: Any, column: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DeepresError(f"{folder}: cannot be written ({error.strerror}); set DEEPRES_CACHE to a folder that can") from error
    metadata = getattr(source, "metadata", None)
    if metadata is None:
        return
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    parts = [group.column(i) for group in groups for i in range(group.num_columns)]
    needed = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column)
    if needed > free:
        raise DeepresError(
            f"{path}: its images take {needed / 1e9:.1f} GB, which are copied into {folder}, where {free / 1e9:.1f} GB are free; "
            f"set DEEPRES_CACHE to a folder on a larger disk"
        )
