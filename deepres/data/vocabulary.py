"""Tokens of language models: how a text becomes numbers and back, kept with the weights like the preparation of images."""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepres.errors import DeepresError, first_line

END = "<|endoftext|>"  # the token that stands behind each of several documents
_ENDS = (END, "</s>", "<eos>", "<|end_of_text|>")
PIECE = 1 << 20  # characters that are encoded at a time


class Vocabulary(ABC):
    """The tokens that a language model knows, numbered from 0."""

    kind: str  # "characters" or "byte pairs"
    names: tuple[str, ...]  # of the tokens, all different
    end: int | None  # number of the token that ends a document

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Numbers (L,) of a text's tokens, int32. Raises ``DeepresError`` for characters that the vocabulary does not have."""

    @abstractmethod
    def bytes_of(self, token: int) -> bytes:
        """The part of a UTF-8 text that ``token`` stands for; empty for one that stands for no text."""

    @abstractmethod
    def to_notes(self) -> dict[str, Any]:
        """Plain values from which ``vocabulary_from_notes`` builds it again."""

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_notes() == other.to_notes()

    def __hash__(self) -> int:
        return hash(self.names)

    @cached_property
    def lengths(self) -> Tensor:
        """Bytes of each token, (K,) int64."""
        return torch.tensor([len(self.bytes_of(i)) for i in range(len(self))])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.bytes_of(int(token)) for token in tokens).decode("utf-8", "replace")

    def stream(self) -> TokenStream:
        """A decoder that is given one token at a time."""
        return TokenStream(self)


class TokenStream:
    """Text as soon as it is complete: a character of several bytes may come in several tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that ``token`` completes, perhaps none."""
        return self._decoder.decode(self.vocabulary.bytes_of(token))

    def close(self) -> str:
        """U+FFFD for a character of which the rest never came; else nothing."""
        return self._decoder.decode(b"", final=True)


class Characters(Vocabulary):
    """One token for each character of an alphabet, and perhaps ``END``."""

    kind = "characters"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.end = self.names.index(END) if END in self.names else None
        letters = [(ord(name), i) for i, name in enumerate(self.names) if len(name) == 1]
        if len(letters) + (self.end is not None) != len(self.names):
            raise DeepresError("the tokens are not single characters, so a text cannot be read by them")
        self._codes, self._numbers = (np.array(column, np.uint32) for column in zip(*sorted(letters), strict=True))

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)  # half a character is an unknown one
        where = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[where] != codes
        if unknown.any():
            first = int(unknown.argmax())
            raise DeepresError(
                f"the character {text[first]!r} at position {first:,} is none of the network's {len(self._codes)} characters"
            )
        return self._numbers[where].astype(np.int32)

    def bytes_of(self, token: int) -> bytes:
        return b"" if token == self.end else self.names[token].encode()

    def to_notes(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names)}


class BytePairs(Vocabulary):
    """Tokens of the library ``tokenizers``: byte pairs, as GPT-2's or with bytes as a last resort, as Llama's.

    ``definition``: what ``tokenizer.json`` holds; ``size``: the network's tokens, where it has more, as for the sake of alignment.

    Raises ``DeepresError`` for a definition that cannot be read, or whose tokens do not give back every text.
    """

    kind = "byte pairs"

    def __init__(self, definition: str, size: int = 0, name: str = "tokenizer.json") -> None:
        tokenizers = _tokenizers()
        try:
            decoder = json.dumps(json.loads(definition).get("decoder"))
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises Exception itself
            raise DeepresError(f"{name}: not the definition of a tokenizer ({first_line(error)})") from error
        if "ByteLevel" not in decoder and "ByteFallback" not in decoder:
            raise DeepresError(f"{name}: its tokens do not stand for bytes, so a text cannot be read back from them")
        self._byte_level = "ByteLevel" in decoder
        self._definition = definition
        self._tokenizer.encode_special_tokens = True  # a text that spells a special token out is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        names = [f"<unused {i}>" for i in range(max(size, 1 + max(known.values())))]
        for token, number in known.items():
            names[number] = token
        self.names = tuple(names)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}
        self._added = {number for number, token in added.items() if not token.special}
        self.end = next((known[one] for one in _ENDS if one in known), None)

    @classmethod
    def read(cls, path: Path, size: int = 0) -> BytePairs:
        """From a ``tokenizer.json``."""
        try:
            return cls(path.read_text(encoding="utf-8"), size, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DeepresError(f"{path}: not a tokenizer.json that can be read ({error})") from error

    def encode(self, text: str) -> np.ndarray:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DeepresError(
                f"{text[error.start]!r} at position {error.start:,} is half a character, which no text holds"
            ) from error
        parts = [one.ids for one in self._tokenizer.encode_batch_fast(_pieces(text), add_special_tokens=False)]
        return np.concatenate([np.array(ids, np.int32) for ids in parts]) if parts else np.empty(0, np.int32)

    def bytes_of(self, token: int) -> bytes:
        name = self.names[token]
        if token in self._special or name.startswith("<unused "):
            return b""
        if token in self._added:
            return name.encode()
        if self._byte_level:
            table = _byte_of()
            return bytes(table[character] for character in name if character in table)
        if len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()

    def to_notes(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": self._definition, "size": len(self)}


def train_byte_pairs(texts: Iterable[str], size: int) -> BytePairs:
    """Byte pairs that are frequent in ``texts`` (Sennrich et al. 2016), over bytes and split into words as GPT-2's are.

    ``size``: how many tokens, at most; ``END`` and the 256 bytes are among them.
    """
    tokenizers = _tokenizers()
    if size < 257:
        raise DeepresError(f"--tokens bpe:{size}: the {END} and the 256 bytes are tokens, so give 257 or more")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return BytePairs(made.to_str())


def vocabulary_from_notes(notes: dict[str, Any] | None) -> Vocabulary | None:
    """The vocabulary that ``Vocabulary.to_notes`` described; None for None."""
    if notes is None:
        return None
    return Characters(notes["names"]) if notes["kind"] == Characters.kind else BytePairs(notes["tokenizer"], notes["size"])


def _pieces(text: str) -> list[str]:
    """``text`` in parts of about ``PIECE`` characters, cut behind a line's end where there is one."""
    found, start = [], 0
    while len(text) - start > PIECE:
        cut = 1 + text.rfind("\n", start + PIECE // 2, start + PIECE) or start + PIECE
        found.append(text[start:cut])
        start = cut
    return [*found, text[start:]] if start < len(text) else found


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DeepresError("byte-pair tokens need tokenizers, which is not installed; pip install 'deepres[text]'") from error
    return tokenizers


@cache
def _byte_of() -> dict[str, int]:
    """The byte behind each character of a byte-level token (Radford et al. 2019): printable ones stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), ord("\u00ff") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
