"""Options of ``look``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """Options of ``look``."""

    ablations: bool = True  # also bypass each branch in turn, which takes one pass over the examples each
    pairs: int = 60  # pairs of branches to bypass; with 0, blocks are not deleted or exchanged at random either
    backward: int = 64  # examples for the gradients and the path lengths
