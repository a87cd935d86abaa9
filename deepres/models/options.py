"""Options of all that open a network from a reference, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What ``open_with_data`` takes beside a reference and data."""

    weights: Path | None = None  # file or run's folder with the weights of a network that is built by name
    size: int | None = None  # side of the input in pixels [the size that the network was trained with]
