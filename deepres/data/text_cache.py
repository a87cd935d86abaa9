"""Tokens of texts kept in the cache folder, so that a run that starts again does not tokenise them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deepres.data.vocabulary import BytePairs, Vocabulary, vocabulary_from_notes
from deepres.paths import cache_folder

VERSION = 1  # of how a text is read, split and kept; a new one leaves the old files unused
LARGE = 16 << 20  # bytes of text from which on it pays to keep characters too; byte pairs always do
MOST = 16  # texts that are kept, the last ones that were read

Encoded = dict[str, np.ndarray]  # the tokens (L,) of "train", "val" and "test"


def text_key(files: Iterable[tuple[str, Path]], *how: object) -> str:
    """Name for the tokens of ``files``, each with its name within the text, as they are read by ``how``.

    It depends on the contents and not on the time of the last change, so a text that was edited is read again. A file that cannot be
    read counts by its name alone: whoever reads the text says what is wrong with it.
    """
    found = hashlib.sha256(repr((VERSION, _library_version(), how)).encode())
    for name, path in files:
        found.update(f"\0{name}\0".encode())
        with contextlib.suppress(OSError), open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:32]


def read_tokens(key: str) -> tuple[Vocabulary, Encoded] | None:
    """The vocabulary and tokens that ``keep_tokens`` kept; None where there are none, or where their file is damaged."""
    path = _path(key)
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a damaged archive open
            encoded = {name: file[name] for name in ("train", "val", "test")}
            vocabulary = vocabulary_from_notes(json.loads(str(file["vocabulary"])))
        os.utime(path)  # the last ones that were read are kept
    except Exception:  # whatever a damaged archive raises; it is made again
        return None
    return None if vocabulary is None else (vocabulary, encoded)


def keep_tokens(key: str, vocabulary: Vocabulary, encoded: Encoded, size: int) -> None:
    """Keep the tokens of a text of ``size`` bytes, where that pays. A cache folder that cannot be written changes nothing."""
    if not isinstance(vocabulary, BytePairs) and size < LARGE:
        return
    path = _path(key)
    part = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.savez(file, vocabulary=np.array(json.dumps(vocabulary.to_notes())), **encoded)  # type: ignore[arg-type]
        os.replace(part, path)
        for old in sorted(path.parent.glob("*.npz"), key=lambda one: one.stat().st_mtime)[:-MOST]:
            old.unlink()
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return cache_folder() / "texts" / f"{key}.npz"


def _library_version() -> str:
    """Of ``tokenizers``, another of which may find other byte pairs."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tokenizers")
    except PackageNotFoundError:
        return ""
