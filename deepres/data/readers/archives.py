"""Archives: a zip is read in place where it holds images; everything else is unpacked once into the cache folder."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from deepres.data.files import Item, Listing, fingerprint
from deepres.data.readers import kaggle
from deepres.data.tree import Tree, folder_tree, is_system, zip_tree
from deepres.errors import DeepresError
from deepres.paths import cache_folder

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ARCHIVES = (".zip", ".tar", *COMPRESSED)
_DEPTH = 3  # archives inside archives are opened so often


def is_compressed_tar(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(COMPRESSED)


def read_zip(path: Path) -> Listing | Path:
    """The listing of a zip of images, or the folder into which a zip of anything else was unpacked."""
    tree = expanded(zip_tree(path))
    return kaggle.read(tree) if tree.images or not tree.files else unpacked(path)


def read_any_folder(path: Path) -> Listing | Path:
    """The listing of a folder of images, perhaps in archives, or the folder of a single archive of anything else."""
    tree = folder_tree(path)
    whole = expanded(tree)
    inner = [name for name in tree.files if name.lower().endswith(_ARCHIVES)]
    return unpacked(path / inner[0]) if len(inner) == 1 and not whole.images else kaggle.read(whole)


def unpacked(path: Path) -> Path:
    """The folder of the cache that holds the files of an archive, unpacked at first.

    Raises ``DeepresError`` for a damaged archive, one that would not fit on the disk, and one with paths that lead outside.
    """
    stat = path.stat()
    key = fingerprint((), str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    target = cache_folder() / "unpacked" / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=target.parent))
    try:
        (_unpack_zip if path.suffix.lower() == ".zip" else _unpack_tar)(path, partial)
        partial.rename(target)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        if target.is_dir():  # another process was faster
            return target
        raise DeepresError(f"{path}: cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _unpack_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not any(map(is_system, Path(one.filename).parts))]
        _need_room(path, target, sum(one.file_size for one in members))
        archive.extractall(target, members)


def _unpack_tar(path: Path, target: Path) -> None:
    with tarfile.open(path) as archive:
        for member in archive:
            if (member.isreg() or member.isdir()) and not any(map(is_system, Path(member.name).parts)):
                _need_room(path, target, member.size)
                archive.extract(member, target, filter="data")


def _need_room(path: Path, target: Path, size: int) -> None:
    free = shutil.disk_usage(target).free
    if size > free:
        raise DeepresError(f"{path}: unpacks to {size / 1e9:,.1f} GB, and {target.parent} has {free / 1e9:,.1f} GB free")


def expanded(tree: Tree, depth: int = 0) -> Tree:
    """A tree without images in which the archives are replaced by their files, each in a folder of its archive's name."""
    inner = [name for name in tree.files if name.lower().endswith(_ARCHIVES)]
    if tree.images or not inner or depth == _DEPTH:
        return tree
    files = {name: item for name, item in tree.files.items() if name not in inner}
    folders, hidden, notes = set(tree.folders), list(tree.hidden), [*tree.notes, f"read inside of {', '.join(inner[:5])}"]
    for name in inner:
        path = _as_file(tree.files[name], name)
        found = expanded(zip_tree(path) if name.lower().endswith(".zip") else folder_tree(unpacked(path)), depth + 1)
        folder, stem = name.rpartition("/")[0], name.rpartition("/")[2].partition(".")[0]
        own = {part.split("/")[0] for part in found.files} == {stem}  # train.zip that holds a folder train
        prefix = "".join(f"{part}/" for part in (folder, "" if own else stem) if part)
        files |= {prefix + part: item for part, item in found.files.items()}
        parts = prefix.rstrip("/").split("/") if prefix else []
        folders |= {"/".join(parts[: i + 1]) for i in range(len(parts))} | {prefix + part for part in found.folders}
        hidden += [prefix + part for part in found.hidden]
    ordered = sorted(files, key=lambda name: name.split("/"))
    return replace(
        tree,
        files={name: files[name] for name in ordered},
        folders=frozenset(folders),
        hidden=tuple(hidden),
        notes=tuple(notes),
    )


def _as_file(item: Item, name: str) -> Path:
    """An archive as a file of its own: itself, or a copy in the cache of one that lies in another archive."""
    if item.offset < 0:
        return Path(item.path)
    stat = os.stat(item.path)
    key = hashlib.sha256(
        f"{item.path} {stat.st_size} {stat.st_mtime_ns} {item.offset}".encode(errors="surrogateescape")
    ).hexdigest()
    target = cache_folder() / "unpacked" / f"{key[:24]}-{name.rpartition('/')[2]}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            partial.write_bytes(item.read())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target
