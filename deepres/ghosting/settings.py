"""What a ghost does with what its gates and exits say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """When a block is a ghost and when an input leaves. The default is the whole network."""

    skip: float | None = None  # blocks worth less than this, per share of the time, are passed through; None: none
    leave: float | None = None  # inputs leave at an exit whose confidence is at least this; None: none does
    sure: float = 0.0  # inputs that were skipped through and end below this confidence are answered again with the full depth
    fixed: bool = False  # a block's mean worth decides, so that the same blocks run for every input and shapes are static
    gates: tuple[int, ...] | None = None  # segments whose gates are asked, those that save more than they cost; None: all
    exits: tuple[int, ...] | None = None  # segments whose exits are asked; None: all
    mean: bool = False  # an answer is the mean of those of all exits asked so far, the end's among them

    def __post_init__(self) -> None:
        for name in ("gates", "exits"):  # read from a file they are lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def whole(self) -> bool:
        return self.skip is None and self.leave is None

    def asks_gate(self, c: int) -> bool:
        """Whether the gate in front of segment ``c`` is asked."""
        return self.skip is not None and (self.gates is None or c in self.gates)

    def asks_exit(self, c: int) -> bool:
        """Whether the exit behind segment ``c`` is asked."""
        return self.leave is not None and (self.exits is None or c in self.exits)
