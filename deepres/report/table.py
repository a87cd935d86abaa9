"""Tables of results: the same rows on the terminal and on a page, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. The first column names what the row is about and is aligned to the left."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong:
            raise ValueError(f"a table of {len(self.head)} columns cannot have the row {list(wrong[0])}")


def percent(value: float, digits: int = 2) -> str:
    """``percent(7.256) == "7.26 %"``; ``value`` is in percent already."""
    return f"{value:.{digits}f} %"


def share(value: float) -> str:
    """``share(0.604) == "60 %"``."""
    return percent(100 * value, 0)


def share_range(low: float, high: float) -> str:
    """``share_range(0.58, 0.62) == "58 to 62 %"``."""
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def mean_and_deviation(mean: float, deviation: float, unit: str = " %") -> str:
    """``mean_and_deviation(7.25, 0.13) == "7.25 ± 0.13 %"``; without a deviation (one seed) the mean alone."""
    return f"{mean:.2f} ± {deviation:.2f}{unit}" if deviation else f"{mean:.2f}{unit}"
