"""The files below a folder or in a zip, by their relative names; hidden and system files are left out."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deepres.data.decode import is_image_name
from deepres.data.files import Item
from deepres.errors import DeepresError

SYSTEM = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


def is_system(name: str) -> bool:
    """Return whether a file or folder of this name belongs to the system or a tool, not to the data."""
    return name.startswith(".") or name.lower() in SYSTEM or name.lower() in SYSTEM_FILES


@dataclass(frozen=True, eq=False)
class Tree:
    """Files by relative name ("/" between folders; not UTF-8 as ``os.fsdecode`` gives it), sorted."""

    root: Path
    files: dict[str, Item]
    folders: frozenset[str]  # all folders, also empty ones
    hidden: tuple[str, ...] = ()  # hidden and system folders that were skipped
    notes: tuple[str, ...] = ()  # sentences on what could not be followed or opened

    @property
    def images(self) -> list[str]:
        return [name for name in self.files if is_image_name(name)]

    def skipped(self) -> str:
        """Number of files that are not images, by suffix; empty if all files are images."""
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in self.files if not is_image_name(name))
        if not kinds:
            return ""
        return f"{sum(kinds.values())} files are not images ({', '.join(f'{kind} {n}' for kind, n in kinds.most_common(5))})"


def folder_tree(root: Path) -> Tree:
    """The tree of a folder. Links are followed, but for those to a folder around them.

    Raises ``DeepresError`` for a folder that may not be read.
    """
    files: dict[str, Item] = {}
    folders: set[str] = set()
    hidden: list[str] = []
    circular: list[str] = []
    broken: list[str] = []
    closed: list[str] = []

    def walk(path: str, prefix: str, above: frozenset[str]) -> None:
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except PermissionError as error:
            if not prefix:
                raise DeepresError(f"{root}: may not be read ({error.strerror})") from error
            closed.append(prefix.rstrip("/"))
            return
        for entry in found:
            name = prefix + entry.name
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if is_system(entry.name):
                    hidden.append(name)
                elif real in above:
                    circular.append(name)
                else:
                    folders.add(name)
                    walk(entry.path, name + "/", above | {real})
            elif not is_system(entry.name) and entry.is_file():
                files[name] = Item(entry.path, -1)
            elif entry.is_symlink():
                broken.append(name)

    walk(str(root), "", frozenset({os.path.realpath(root)}))
    ordered = sorted(files, key=lambda name: name.split("/"))
    notes = [
        f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (
            ("links to a folder around them, skipped", circular),
            ("links that lead nowhere, skipped", broken),
            ("folders that may not be read, skipped", closed),
        )
        if names
    ]
    return Tree(root, {name: files[name] for name in ordered}, frozenset(folders), tuple(hidden), tuple(notes))


def zip_tree(path: Path) -> Tree:
    """The tree of a zip file, whose members are read in place.

    Raises ``DeepresError`` for a damaged or encrypted file and for a compression other than deflate.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DeepresError(f"{path}: not a whole zip file ({error})") from error
    files, folders, hidden = {}, set(), set()
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        system = next((i for i, part in enumerate(parts) if is_system(part)), None)
        if system is not None:
            if system < len(parts) - 1:
                hidden.add("/".join(parts[: system + 1]))
            continue
        folders |= {"/".join(parts[:i]) for i in range(1, len(parts) + member.is_dir())}
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DeepresError(f"{path}: {member.filename} is encrypted or compressed in an unusual way; extract it first")
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        files["/".join(parts)] = Item(
            str(path), -1, member.header_offset, member.compress_size, member.filename, "deflated" if deflated else "stored"
        )
    ordered = sorted(files, key=lambda name: name.split("/"))
    return Tree(path, {name: files[name] for name in ordered}, frozenset(folders), tuple(sorted(hidden)))
