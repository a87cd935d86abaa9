"""The part of docs/results.md on recipes with one ingredient changed at a time."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.ablation import AS_IT_IS
from benchmarks.tell_format import markdown


def ablation_text(result: dict[str, Any]) -> str:
    """One table for each recipe, network and number of epochs."""
    tables: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        tables.setdefault((row["recipe"], row["net"], row["epochs"]), []).append(row)
    parts = [
        f"`python -m benchmarks.ablation`: {result['what']}. Differences are to the same seed of the recipe as it is, in points; mean and "
        "standard deviation over the seeds."
    ]
    for (recipe, net, epochs), rows in tables.items():
        parts += [f"`{recipe}`, {net}, {epochs:g} epochs:", _table(rows)]
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    by_change: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_change.setdefault(row["change"], {})[row["seed"]] = row
    base = by_change.get(AS_IT_IS, {})
    cells = []
    for change, seeds in sorted(
        by_change.items(), key=lambda pair: statistics.fmean(row["val_error"] for row in pair[1].values())
    ):
        cells.append(
            [
                change,
                str(len(seeds)),
                *(_spread([row[what] for row in seeds.values()]) for what in ("val_error", "test_error")),
                *(
                    ""
                    if change == AS_IT_IS
                    else _spread([row[what] - base[seed][what] for seed, row in seeds.items() if seed in base], sign="+")
                    for what in ("val_error", "test_error")
                ),
            ]
        )
    head = ["", "seeds", "validation error, %", "test error, %", "difference, validation", "difference, test"]
    return markdown(head, cells)


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):{sign}.2f}"
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text
