"""Texts on disk: a ``.txt`` file, JSON lines with a ``text`` field, or a folder of these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from deepres.errors import DeepresError
from deepres.paths import user_path

TEXT_SUFFIXES = (".txt", ".jsonl")
FIELD = "text"
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_BESIDE = ("license", "readme")  # files that describe a folder of texts


def is_text(name: object) -> bool:
    """Return whether ``name`` is a text, JSON lines of texts, or a folder that holds nothing else."""
    if not isinstance(name, (str, Path)):
        return False
    path = user_path(name)
    if path.is_dir():
        return not any(_others(path)) and any(_texts(path))  # in this order the first image answers for a folder of a million
    return path.is_file() and (path.suffix == ".txt" or (path.suffix == ".jsonl" and _holds_texts(path)))


def is_packed_text(path: Path) -> bool:
    """Return whether ``path`` is a compressed file of a text, by its name."""
    return path.is_file() and path.suffix in (".gz", ".bz2", ".xz", ".zst") and path.with_suffix("").suffix in TEXT_SUFFIXES


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.stem.lower() not in _BESIDE and path.is_file():
            yield path


def _texts(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if path.suffix in TEXT_SUFFIXES)


def _others(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if not (path.suffix == ".txt" or (path.suffix == ".jsonl" and _holds_texts(path))))


def _holds_texts(path: Path) -> bool:
    """Whether the first line is an object with a text; such a file may as well be a table of images."""
    try:
        with open(path, encoding="utf-8") as file:
            first = json.loads(next((line for line in file if line.strip()), "null"))
    except (OSError, ValueError):  # UnicodeDecodeError and JSONDecodeError among them
        return False
    return isinstance(first, dict) and isinstance(first.get(FIELD), str)


def text_files(path: Path) -> list[tuple[str, Path]]:
    """The files of a text, each with its name within it, in the order in which they are read."""
    return [(str(file.relative_to(path)), file) for file in sorted(_texts(path))] if path.is_dir() else [(path.name, path)]


def read_documents(path: Path) -> dict[str, list[str]]:
    """The documents of each split ("" where none is named), in the order of the files' names and of their lines.

    Files or folders called ``train``, ``val`` and ``test`` name splits.

    Raises ``DeepresError`` for what is no UTF-8 or holds null bytes, with file and offset, and for a line without a text.
    """
    found: dict[str, list[str]] = {}
    for _, file in text_files(path):
        names = [*file.relative_to(path).parts[:-1], file.stem] if path.is_dir() else []
        split = next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), "")
        content = _decoded(file)
        documents = [content] if file.suffix == ".txt" else _lines(file, content)
        found.setdefault(split, []).extend(document for document in documents if document)
    return found


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DeepresError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DeepresError(
            f"{path}: not UTF-8 at byte {error.start:,} ({error.reason}); convert it, or leave the file out"
        ) from error
    if (place := content.find("\0")) >= 0:  # UTF-16 without a mark is valid UTF-8 where its text is ASCII
        before = len(content[:place].encode())
        raise DeepresError(
            f"{path}: a null byte at {before:,}, as in UTF-16 and binary files; convert it, or leave the file out"
        )
    return content


def _lines(path: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[FIELD]
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a lone surrogate among them
            raise DeepresError(f"{path}, line {number}: not a JSON object with a {FIELD!r} that is text") from error
        texts.append(text)
    return texts
