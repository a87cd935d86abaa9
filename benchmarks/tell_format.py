"""Tables and figures as docs/results.md writes them."""

from __future__ import annotations

from typing import Any

from benchmarks.notes import SENTENCES


def plain(text: str) -> str:
    """A recorded sentence in the words that the experiments use now. Figures stay as they are."""
    for old, new in SENTENCES.items():
        text = text.replace(old, new)
    return text


def markdown(head: list[str], rows: list[list[str]]) -> str:
    line = "|".join(["---", *["--:"] * (len(head) - 1)])
    return "\n".join([f"| {' | '.join(head)} |", f"|{line}|", *(f"| {' | '.join(row)} |" for row in rows)])


def speed_cells(one: dict[str, Any], unit: str) -> list[str]:
    """Median and range of a speed, and its ratio with the ratio's range; large numbers of ``unit`` have no decimals."""
    digits = ",.1f" if unit == "images" else ",.0f"
    return [
        f"{one[f'{unit}_per_second']:{digits}}",
        f"{one['lowest']:{digits}} to {one['highest']:{digits}}",
        f"{one['ratio']:.2f} ({one['ratio_lowest']:.2f} to {one['ratio_highest']:.2f})",
    ]


def seeds_of(result: dict[str, Any]) -> str:
    return "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"


def spread_of(one: dict[str, Any]) -> str:
    spread = f" ± {one['spread']:.2f}" if len(one["errors"]) > 1 else ""
    return f"{one['test_error']:.2f}{spread} %"
