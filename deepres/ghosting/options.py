"""Options of ``ghost``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

GateChoice = Literal["both", "fitted", "fixed", "none"]
_MILLISECONDS = PrimitiveConstructorSpec(
    nargs=1,
    metavar="MS",
    instance_from_str=lambda given: float(given[0]) / 1000,
    is_instance=lambda value: isinstance(value, (int, float)),
    str_from_instance=lambda value: [f"{1000 * value:g}"],
)


@dataclass(frozen=True, kw_only=True)
class GhostOptions:
    """Options of ``ghost``. Give either ``budget`` or ``error``."""

    # largest mean time of a call, as a share of the whole network's, such as 0.6; this or the error
    budget: float | None = None
    error: float | None = None  # allowed rise of the error in points, such as 0.3; the fastest ghost within it is made
    # longest time of a call, in milliseconds (in Python: in seconds); inputs exit at the last exit head that they reach in time
    # [no limit]
    deadline: Annotated[float, _MILLISECONDS, arg(name="deadline")] | None = None
    batch: int = 32  # inputs of a call, for which the time is measured
    # blocks are selected for each input (fitted), the same for all inputs (fixed), whichever is better (both), or not at all (none)
    gates: GateChoice = "both"
    exits: bool = True  # let inputs exit early
    examples: int = 2000  # training examples to fit gates on, and validation examples to select settings on
    confirm: int = 4000  # further validation examples, at most, on which a rise of the error is confirmed
    confidence: float = 0.9  # probability with which the rise of the error is within the limit; 0.5: it is on average


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of generating text with less depth. Give at most one of ``speculate`` and ``depth``."""

    # number of the network's blocks that draft tokens, which the whole network verifies: the same distribution, often sooner
    speculate: int | None = None
    ahead: int = 4  # tokens that are drafted at a time
    # share of the blocks that a token passes on average, such as 0.7: tokens of which the network is sure early are answered early
    depth: float | None = None
