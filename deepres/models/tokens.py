"""By which tokens a language model reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deepres.data import BytePairs, Characters, Tokens, Vocabulary
from deepres.data.text import CONTEXT
from deepres.errors import DeepresError
from deepres.models.hub_reading import is_hub_folder
from deepres.models.pretrained import resolve_hub
from deepres.models.store import notes

TOKENIZER = "tokenizer.json"


def vocabulary_of(reference: str | Path) -> Vocabulary | None:
    """The vocabulary saved with a run, with a file of ours or in ``hf:FOLDER``; None where there is none.

    Raises ``DeepresError`` for one that cannot be read, or that has more tokens than the network.
    """
    text = str(reference)
    if (Path(text) / "config.json").is_file():
        text = f"hf:{text}"
    if text.startswith("hf:"):
        folder = Path(resolve_hub(text).removeprefix("hf:"))
        return _vocabulary_in(folder) if is_hub_folder(folder) else _hugging_face(folder)
    if not Path(text).exists() or not any(Path(text).suffix == s for s in ("", ".safetensors")):
        return None
    return _vocabulary_in(Path(text))


def _vocabulary_in(path: Path) -> Vocabulary | None:
    """The vocabulary noted in a file of ours, or in that of a folder."""
    try:
        noted = notes(path)
    except DeepresError:
        return None  # another's checkpoint; whoever loads it says what is wrong with it
    prepare = noted.get("prepare") or {}
    if prepare.get("channels") != 0:
        return None
    return saved_vocabulary(Tokens.from_notes(prepare), noted.get("classes"))


def saved_vocabulary(prepare: object, classes: Sequence[str] | None) -> Vocabulary | None:
    """The vocabulary of ``prepare``; files of earlier versions name the characters as their classes alone."""
    if not isinstance(prepare, Tokens):
        return None
    if prepare.vocabulary is None and classes and all(len(name) == 1 for name in classes):
        return Characters(classes)
    return prepare.vocabulary


def _hugging_face(folder: Path) -> Vocabulary | None:
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        known = json.loads((folder / "config.json").read_text()).get("vocab_size")
    except (OSError, ValueError):
        known = None
    found = BytePairs.read(folder / TOKENIZER, known if isinstance(known, int) else 0)
    if isinstance(known, int) and len(found) > known:
        raise DeepresError(f"{folder / TOKENIZER}: has {len(found):,} tokens, and the network knows {known:,}")
    return found


def hugging_face_tokens(folder: Path, longest: int | None) -> Tokens | None:
    """Read the tokens of a Hugging Face folder with a ``tokenizer.json``."""
    vocabulary = _hugging_face(folder)
    return None if vocabulary is None else Tokens(min(longest or CONTEXT, CONTEXT), vocabulary=vocabulary)
