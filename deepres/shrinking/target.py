"""Targets of shrinking: ``time=0.6``, ``blocks=0.5``, ``macs=``, ``params=``, ``error=+0.3``, ``loss=+0.02``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deepres.adapters import Block
from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError

Quantity = Literal["time", "blocks", "macs", "params", "error", "loss"]
HELD = {
    "error": "%",
    "loss": "nats",
}  # quantities of which a target is the allowed rise on the validation split, and their units


@renamed_fields(what="quantity")
@dataclass(frozen=True)
class Target:
    """A quantity and the share of it that remains after shrinking.

    ``value`` is a share of the whole network's time, blocks, multiply-adds or weights. For ``blocks``, a value of 1 or more is a
    count. For ``error``, it is the allowed rise of the validation error in points, and for ``loss`` that of the validation loss in
    nats, which suits language models.
    """

    quantity: Quantity
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``QUANTITY=VALUE``. Raises ``DeepresError`` for an unknown quantity or a value out of range."""
        match = re.fullmatch(r"(time|blocks|macs|params|error|loss)=\+?((?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)", text.strip())
        if match is None:
            raise DeepresError(
                f"--target {text!r} is not a target: give what remains, such as time=0.6, blocks=14, macs=0.5 or params=0.5, or the "
                "allowed rise of the error in points, such as error=+0.3, or of the loss in nats, such as loss=+0.02"
            )
        quantity, value = match[1], float(match[2])
        if quantity in ("time", "macs", "params") and not 0 < value < 1:
            raise DeepresError(f"--target {text!r}: the share that remains must lie between 0 and 1")
        if quantity == "blocks" and not (0 < value < 1 or (value >= 1 and value == int(value))):
            raise DeepresError(f"--target {text!r}: give a share between 0 and 1, or a whole number of blocks that remain")
        return cls(quantity, value)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.quantity}={'+' if self.quantity in HELD else ''}{self.value:g}"

    @property
    def unit(self) -> str:
        """Unit of a change of the quantity that is held."""
        return "points" if self.quantity == "error" else "nats"

    def costs(self, blocks: Sequence[Block]) -> list[float]:
        """Cost of each block in the target's quantity, as a share of the whole network; for ``error`` and ``loss``, its time."""
        if self.quantity == "blocks":
            return [1 / len(blocks)] * len(blocks)
        if self.quantity in ("macs", "params"):
            total = sum(getattr(block, self.quantity) for block in blocks)
            return [getattr(block, self.quantity) / max(total, 1) for block in blocks]
        return [block.time for block in blocks]

    def to_remove(self, blocks: Sequence[Block], staying: float = 0.0) -> float:
        """Total cost to remove, in the unit of ``costs``; for ``error`` and ``loss``, the cost of all blocks that can go together.

        ``staying``: cost of removable blocks that cannot go with all the others (see ``staying_cost``). Raises ``DeepresError`` if the
        blocks that can go cost less than the target demands, or if it removes nothing.
        """
        costs = self.costs(blocks)
        most = sum(cost for block, cost in zip(blocks, costs, strict=True) if block.removable) - staying
        if self.quantity in HELD:
            return most
        if self.quantity == "blocks":
            share = 1 - self.value / (len(blocks) if self.value >= 1 else 1)
        else:
            share = 1 - self.value
        if share <= 0:
            raise DeepresError(f"--target {self}: the network has {len(blocks)} blocks, so none would be removed; give fewer")
        if share > most + 1e-9:
            raise DeepresError(
                f"--target {self}: {100 * share:.0f} % of the {'blocks' if self.quantity == 'blocks' else self.quantity} would have "
                f"to be removed, and the {sum(block.removable for block in blocks)} removable blocks of {len(blocks)} hold only "
                f"{100 * most:.0f} %{' without those that a stage has to keep' if staying else ''}; give a larger value"
            )
        return share
