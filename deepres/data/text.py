"""A text as examples for a language model: characters, and which one comes next."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deepres.data.dataset import Data, Resident
from deepres.data.prepare import Tokens
from deepres.errors import DeepresError

CONTEXT = 128  # characters of an example, where nothing is asked
TEST = 0.1  # share of the text, its end, that is kept for testing; before it comes as much as is asked for validation


def is_text(name: object) -> bool:
    """Whether ``name`` is a text's file."""
    return isinstance(name, (str, Path)) and Path(name).suffix == ".txt" and Path(name).is_file()


def read_text(path: Path, context: int | None = None, val_share: float = 0.1) -> Data:
    """Consecutive pieces of ``context`` characters; the label of each character is the next one.

    The classes are the characters that occur, in the order of their code points; at most 256. The text is split in its own order:
    training, validation, test, so that no piece is seen from both sides.

    Raises ``DeepresError`` for a file that is no UTF-8 text, has too many kinds of characters, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeepresError(f"{path}: not a text in UTF-8 that can be read ({error})") from error
    alphabet = sorted(set(text))
    context = context or CONTEXT
    if len(alphabet) > 256:
        raise DeepresError(
            f"{path}: has {len(alphabet)} kinds of characters; a text is read by characters, of at most 256 kinds"
        )
    if len(text) < 20 * (context + 1):
        raise DeepresError(
            f"{path}: {len(text):,} characters are too few for pieces of {context}; give a longer text or a smaller size"
        )
    code = {character: number for number, character in enumerate(alphabet)}
    numbers = torch.tensor([code[character] for character in text], dtype=torch.uint8)
    test = round(TEST * len(numbers))
    val = round(val_share * (len(numbers) - test))
    train, held, last = numbers.split([len(numbers) - val - test, val, test])
    splits = [_pieces(part, context) for part in (train, held, last)]
    return Data(path.name, tuple(alphabet), splits[0], splits[1], splits[2], Tokens(context))


def _pieces(numbers: Tensor, context: int) -> Resident:
    count = (len(numbers) - 1) // context
    return Resident(
        numbers[: count * context].view(count, context), numbers[1 : count * context + 1].view(count, context).long()
    )
