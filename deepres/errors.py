"""Errors whose text is meant for the person who made the call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepresError(Exception):
    """Bad input or a machine that lacks something: one sentence that says what, where and what to do.

    The command line prints the sentence and exits with ``exit_code``, without a traceback.
    """

    exit_code = 2


def first_line(error: BaseException, most: int | None = None) -> str:
    """First line of the text of ``error`` that is not empty, at most ``most`` characters of it; where there is none, its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:most]


def lacks_memory(error: BaseException) -> bool:
    """Return whether ``error`` is that of Python, or of PyTorch on any device, where memory could not be allocated."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'resnet50'?"``, or an empty string if nothing comes close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
