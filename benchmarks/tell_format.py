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


def seeds_of(result: dict[str, Any]) -> str:
    return "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"


def spread_of(one: dict[str, Any]) -> str:
    spread = f" ± {one['spread']:.2f}" if len(one["errors"]) > 1 else ""
    return f"{one['test_error']:.2f}{spread} %"
