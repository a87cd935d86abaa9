"""A text as examples for a language model: pieces of tokens, and for each token the one that comes next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deepres.data.dataset import Data, Resident
from deepres.data.documents import is_text, read_documents, text_files
from deepres.data.prepare import Tokens
from deepres.data.splits import SPLIT_SEED
from deepres.data.text_cache import Encoded, keep_tokens, read_tokens, text_key
from deepres.data.vocabulary import END, BytePairs, Characters, Vocabulary, train_byte_pairs
from deepres.errors import DeepresError
from deepres.paths import name_of, user_path

__all__ = ["CONTEXT", "is_text", "read_text"]
CONTEXT = 128  # tokens of an example, where nothing is asked
TEST = 0.1  # share of the text that is kept for testing; of the rest, as much as is asked for validation
MANY = 20  # documents; so many are drawn for each split whole, fewer are one text that is cut
MOST_CHARACTERS = 20_000

Splits = dict[str, list[str]]  # the documents of "train", "val" and "test"


def read_text(
    path: Path, context: int | None = None, val_share: float = 0.1, tokens: str | Path | Vocabulary | None = None
) -> Data:
    """Consecutive pieces of ``context`` tokens; the label of each token is the next one.

    ``tokens``: ``"characters"`` (the usual): those that occur, in the order of their code points; ``"bpe:4096"``: so many byte pairs,
    found in the training part alone; a ``tokenizer.json``; or a ``Vocabulary``. Where there are several documents, the token ``END``
    stands behind each. A text, or few documents in a row, is cut into training, validation and test in its own order, so that no
    piece is seen from both sides; of many documents each is in one split.

    Raises ``DeepresError`` for a text that is no UTF-8, has too many kinds of characters, or is too short.
    """
    context = context or CONTEXT
    files = text_files(path)
    key = text_key(files, val_share, _named(tokens))
    if (kept := read_tokens(key)) is not None:
        vocabulary, encoded = kept
    else:
        vocabulary, encoded = _tokenised(path, val_share, tokens)
        keep_tokens(key, vocabulary, encoded, sum(file.stat().st_size for _, file in files))
    short = min(encoded, key=lambda name: len(encoded[name]))
    if len(encoded[short]) < context + 1:
        raise DeepresError(
            f"{path}: {len(encoded[short]):,} tokens in the {short} part are too few for a piece of {context}; give a longer text "
            "or a smaller size"
        )
    train, val, test = (_pieces(encoded[name], context, len(vocabulary)) for name in ("train", "val", "test"))
    return Data(name_of(path), vocabulary.names, train, val, test, Tokens(context, vocabulary=vocabulary))


def _tokenised(path: Path, val_share: float, tokens: str | Path | Vocabulary | None) -> tuple[Vocabulary, Encoded]:
    documents = read_documents(path)
    several = sum(map(len, documents.values())) > 1
    splits = _split(documents, val_share)
    if not any(map(len, splits["train"])):
        raise DeepresError(f"{path}: the text is empty" if not any(documents.values()) else f"{path}: no text to train on")
    try:
        vocabulary = _vocabulary(path, splits, several, tokens)
        return vocabulary, {name: _encoded(part, vocabulary, several) for name, part in splits.items()}
    except DeepresError as error:
        raise DeepresError(f"{path}: {error}") from error


def _named(tokens: str | Path | Vocabulary | None) -> str:
    """What the tokens depend on, beside the text."""
    if isinstance(tokens, Vocabulary):
        return json.dumps(tokens.to_notes())
    path = user_path(str(tokens or "characters"))
    return path.read_bytes().hex() if path.is_file() else str(path)


def _vocabulary(path: Path, splits: Splits, several: bool, tokens: str | Path | Vocabulary | None) -> Vocabulary:
    if isinstance(tokens, Vocabulary):
        return tokens
    asked = str(tokens or "characters")
    if asked == "characters":
        alphabet = sorted(set().union(*(document for part in splits.values() for document in part)))
        if len(alphabet) > MOST_CHARACTERS:
            raise DeepresError(f"has {len(alphabet):,} kinds of characters; read it by --tokens bpe:8192 instead")
        return Characters([*alphabet, END] if several else alphabet)
    if asked.startswith("bpe:"):
        size = asked.removeprefix("bpe:")
        if not size.isdecimal():
            raise DeepresError(f"--tokens {asked}: give the number of tokens, such as bpe:4096")
        return train_byte_pairs(splits["train"], int(size))
    definition = user_path(asked)
    if not definition.is_file():
        raise DeepresError(f"--tokens {asked}: neither 'characters', 'bpe:4096' nor a tokenizer.json that exists")
    return BytePairs.read(definition)


def _split(documents: Splits, val_share: float) -> Splits:
    """Name a split for every document. A given ``val`` without ``test`` is the held-out set, as in ImageNet's layout."""
    found = dict(documents)
    if "" in found:
        found["train"] = [*found.get("train", []), *found.pop("")]
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    for name, share in (("test", TEST), ("val", val_share)):
        if name not in found:
            found["train"], found[name] = _cut(found.get("train", []), share)
    return {name: found.get(name, []) for name in ("train", "val", "test")}


def _cut(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(rest, part) of which the part holds about ``share`` of the characters."""
    total = sum(map(len, documents))
    wanted = round(share * total)
    if len(documents) >= MANY:
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        taken: set[int] = set()
        for index in order:
            if wanted <= 0:
                break
            taken.add(index)
            wanted -= len(documents[index])
        return (
            [one for i, one in enumerate(documents) if i not in taken],
            [one for i, one in enumerate(documents) if i in taken],
        )
    rest: list[str] = []
    part: list[str] = []
    left = total - wanted  # characters that stay
    for document in documents:
        if left > 0:
            rest.append(document[:left])
        if len(document) > max(left, 0):
            part.append(document[max(left, 0) :])
        left -= len(document)
    return rest, part


def _encoded(documents: Sequence[str], vocabulary: Vocabulary, several: bool) -> np.ndarray:
    end = np.array([vocabulary.end] if several and vocabulary.end is not None else [], np.int32)
    parts = [part for document in documents for part in (vocabulary.encode(document), end)]
    return np.concatenate(parts) if parts else end


def _pieces(numbers: np.ndarray, context: int, kinds: int) -> Resident:
    """Tokens and labels are two views of the same numbers, as small as they can be."""
    tokens = torch.from_numpy(numbers).to(torch.uint8 if kinds <= 256 else torch.int32)
    count = (len(tokens) - 1) // context
    return Resident(tokens[: count * context].view(count, context), tokens[1 : count * context + 1].view(count, context))
