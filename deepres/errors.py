"""Errors whose text is meant for the person who made the call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepresError(Exception):
    """Bad input or a machine that lacks something: one sentence that says what, where and what to do.

    The command line prints the sentence and exits with ``exit_code``, without a traceback.
    """

    exit_code = 2


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'resnet50'?"``, or an empty string if nothing comes close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
