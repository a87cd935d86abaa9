"""The state of a ghost's forward pass, and the selection of rows."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deepres.deprecation import renamed_fields
from deepres.exits import Average, SingleAverage
from deepres.ghosting.settings import Settings


@renamed_fields(left="exited_at", again="recomputed")
@dataclass
class Trace:
    """Record of the blocks that ran for each input of a call, and of early exits and fallbacks."""

    ran: Tensor  # (N, blocks) of truth values
    exited_at: Tensor  # (N,): segment behind which the input exited early, counted from 0; -1: it did not exit early
    recomputed: Tensor  # (N,) of truth values: whether the whole network was computed for it as a fallback


@dataclass
class Pass:
    """State of one forward pass: the rows that are still inside the network, and the decisions so far."""

    n: int
    settings: Settings
    rows: Tensor  # rows of the original batch that are still inside
    trace: Trace | None
    deadline: float | None = None  # time of the clock by which the call must end, seconds
    kept: Tensor | None = None  # (rows, skippable blocks of this segment): whether the block is computed; None: all are
    counts: list[int] = field(default_factory=list)  # number of rows for which each skippable block is computed
    record: bool = False  # record the answer of every exit; no input exits early
    full_head: bool = False  # the layers behind the last block get a row for every input, also for those that exited
    passive: frozenset[int] = frozenset()  # blocks at which nothing is decided
    skipped: Tensor | None = None  # (N,) of truth values: whether some block was skipped
    answers: Tensor | None = None  # (N, K), filled for the inputs that exited early
    average: Average | SingleAverage | None = None  # of the exits so far, for the inputs that are still inside
    exits: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # by segment: logits and confidences


class AllExited(Exception):
    """Raised when all inputs have exited, so that the rest of the network does not run."""


CURRENT: ContextVar[Pass | None] = ContextVar("ghost", default=None)


def select_rows(index: Tensor, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the rows ``index`` of all arguments that have one row for each of the ``n`` inputs, such as masks."""

    def pick(value: Any) -> Any:
        if isinstance(value, tuple):  # such as the cosines and sines of rotary positions
            return tuple(map(pick, value))
        return value.index_select(0, index) if isinstance(value, Tensor) and value.ndim > 0 and len(value) == n else value

    return tuple(map(pick, args)), {key: pick(value) for key, value in kwargs.items()}


@dataclass
class LogitsOutput:
    """Output with ``logits``, for networks of libraries that wrap their logits."""

    logits: Tensor


def wrapped(out: Any, logits: Tensor) -> Any:
    """Give ``logits`` the form of the network's own output ``out``: a tensor, or an object with ``logits``."""
    return logits if out is None or isinstance(out, Tensor) else LogitsOutput(logits)
