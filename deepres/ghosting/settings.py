"""Settings of a ghost: the thresholds of gates, exits and fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepres.deprecation import renamed_fields

# names in files that were saved before
_OLD_NAMES = {"skip": "skip_threshold", "leave": "exit_threshold", "sure": "fallback_threshold", "mean": "average"}


@renamed_fields(**_OLD_NAMES)
@dataclass(frozen=True)
class Settings:
    """Thresholds of the gates, the early exits and the fallback. The default computes the whole network.

    Three mechanisms save or spend time:

    - a *gate* in front of a segment predicts the importance of each of its blocks for an input; blocks below ``skip_threshold`` are
      bypassed: the input takes their shortcuts;
    - an *early exit* behind a segment answers the inputs for which its head is confident enough, at ``exit_threshold``;
    - the *fallback* computes the whole network for inputs that skipped blocks and whose final answer has a confidence below
      ``fallback_threshold``.
    """

    skip_threshold: float | None = None  # importance below which a block is skipped; None: no block is skipped
    exit_threshold: float | None = None  # confidence at which an input exits early; None: no input exits early
    fallback_threshold: float = 0.0  # confidence below which an input that skipped blocks falls back to full depth
    fixed: bool = False  # mean importance decides: the same blocks run for every input, so shapes are static
    gates: tuple[int, ...] | None = None  # segments whose gates are used; None: all
    exits: tuple[int, ...] | None = None  # segments whose exits are used; None: all
    average: bool = False  # answers are averages over all exits so far, the final classifier included

    def __post_init__(self) -> None:
        for name in ("gates", "exits"):  # lists where they are read from a file
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Settings:
        """The settings in a saved file, of this version or of an earlier one."""
        return cls(**{_OLD_NAMES.get(name, name): value for name, value in saved.items()})

    @property
    def whole(self) -> bool:
        """Return whether these settings compute the whole network for every input."""
        return self.skip_threshold is None and self.exit_threshold is None

    def uses_gate(self, c: int) -> bool:
        """Return whether the gate in front of segment ``c`` decides."""
        return self.skip_threshold is not None and (self.gates is None or c in self.gates)

    def uses_exit(self, c: int) -> bool:
        """Return whether inputs may exit early behind segment ``c``."""
        return self.exit_threshold is not None and (self.exits is None or c in self.exits)

    def describe(self) -> str:
        """Describe the settings in a few words."""
        if self.whole:
            return "the whole network"
        parts = []
        if self.skip_threshold is not None:
            parts.append("the same blocks skipped for all inputs" if self.fixed else "blocks skipped by input")
        if self.exit_threshold is not None:
            parts.append(
                f"early exit at a confidence of {self.exit_threshold:g}" + (" of the exits' average" if self.average else "")
            )
        if self.fallback_threshold:
            parts.append(f"fallback to full depth below {self.fallback_threshold:g}")
        return ", ".join(parts)
