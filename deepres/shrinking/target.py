"""What to shrink to: ``time=0.6``, ``blocks=0.5``, ``macs=``, ``params=``, ``error=+0.3``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepres.adapters import Block
from deepres.errors import DeepresError

What = Literal["time", "blocks", "macs", "params", "error"]


@dataclass(frozen=True)
class Target:
    """``value`` is what shall be left, as a share of the whole network's; of ``error``, the points that it may rise.

    ``blocks`` above 1 is a count.
    """

    what: What
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises ``DeepresError`` for what is no target."""
        match = re.fullmatch(r"(time|blocks|macs|params|error)=\+?(\d+(?:\.\d+)?|\.\d+)", text.strip())
        if match is None:
            raise DeepresError(
                f"--target {text!r} is none: give what shall be left, such as time=0.6, blocks=14, macs=0.5 or params=0.5, or how "
                "far the error may rise, such as error=+0.3"
            )
        what, value = match[1], float(match[2])
        if what in ("time", "macs", "params") and not 0 < value < 1:
            raise DeepresError(f"--target {text!r}: the share that shall be left is between 0 and 1")
        if what == "blocks" and not (0 < value < 1 or (value >= 1 and value == int(value))):
            raise DeepresError(
                f"--target {text!r}: give a share between 0 and 1, or a whole number of blocks that shall be left"
            )
        return cls(what, value)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.what}={'+' if self.what == 'error' else ''}{self.value:g}"

    def costs(self, units: Sequence[Block]) -> list[float]:
        """What each unit counts, in the target's own terms, as a share of the whole network; ``error`` counts time."""
        if self.what == "blocks":
            return [1 / len(units)] * len(units)
        if self.what in ("macs", "params"):
            total = sum(getattr(unit, self.what) for unit in units)
            return [getattr(unit, self.what) / max(total, 1) for unit in units]
        return [unit.time for unit in units]

    def amount(self, units: Sequence[Block]) -> float:
        """How much has to go, in the terms of ``costs``. For ``error``, as much as there is.

        Raises ``DeepresError`` where what can go is not enough.
        """
        costs = self.costs(units)
        most = sum(cost for unit, cost in zip(units, costs, strict=True) if unit.removable)
        if self.what == "error":
            return most
        if self.what == "blocks":
            goes = 1 - self.value / (len(units) if self.value >= 1 else 1)
        else:
            goes = 1 - self.value
        if goes <= 0:
            raise DeepresError(f"--target {self}: the network has {len(units)} blocks, so nothing would have to go")
        if goes > most + 1e-9:
            raise DeepresError(
                f"--target {self}: only {100 * most:.0f} % of the {'blocks' if self.what == 'blocks' else self.what} lies in the "
                f"{sum(unit.removable for unit in units)} of {len(units)} blocks that can be the identity; {100 * goes:.0f} % would "
                "have to go"
            )
        return goes
