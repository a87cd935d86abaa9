"""The state of a ghost's forward pass, and what moves its rows."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deepres.exits import Average, SingleAverage
from deepres.ghosting.settings import Settings


@dataclass
class Trace:
    """Which blocks ran for each input of a call."""

    ran: Tensor  # (N, blocks) of truth values
    left: Tensor  # (N,): the segment behind which the input exited early, counted from 0; -1: it did not
    again: Tensor  # (N,) of truth values: whether it fell back to full depth


@dataclass
class Pass:
    """State of one forward pass: which rows are still inside the network, and what has been decided."""

    n: int
    settings: Settings
    rows: Tensor  # of the original batch, of the inputs that are still inside
    trace: Trace | None
    deadline: float | None = None  # on the clock
    kept: Tensor | None = None  # (rows, skippable blocks of this segment) of truth values; None: all
    counts: list[int] = field(default_factory=list)  # of the rows that are kept, by skippable block
    record: bool = False  # record every exit's answer; no input exits
    full_head: bool = False  # what follows the last block gets a row for every input, also for those that exited
    quiet: frozenset[int] = frozenset()  # blocks at which nothing is decided
    ghosted: Tensor | None = None  # (N,) of truth values: some block was skipped
    answers: Tensor | None = None  # (N, K), of the inputs that exited early
    average: Average | SingleAverage | None = None  # of the exits so far, for the inputs that are still inside
    exits: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # by segment: logits and confidences


class AllExited(Exception):
    """All inputs have exited; the rest of the network need not run."""


CURRENT: ContextVar[Pass | None] = ContextVar("ghost", default=None)


def gather(index: Tensor, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rows ``index`` of all arguments that come for the whole batch of ``n``, such as masks."""

    def pick(value: Any) -> Any:
        if isinstance(value, tuple):  # of tensors, such as the cosines and sines of rotary positions
            return tuple(map(pick, value))
        return value.index_select(0, index) if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n else value

    return tuple(map(pick, args)), {key: pick(value) for key, value in kwargs.items()}


@dataclass
class Answer:
    """Logits of a network whose library wraps them."""

    logits: Tensor


def wrapped(out: Any, logits: Tensor) -> Any:
    """``logits`` as the network gives them: themselves, or as an attribute."""
    return logits if out is None or isinstance(out, Tensor) else Answer(logits)
