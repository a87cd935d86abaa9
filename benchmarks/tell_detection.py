"""The results page's parts on detection."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tell_format import markdown


def detectors_text(result: dict[str, Any]) -> str:
    """Accuracy of each arm after the same training time: means and deviations over the seeds."""
    table = []
    for name, one in result.items():
        if not (isinstance(one, dict) and "test_ap50_percent" in one):
            continue
        rows = [row for key, row in result["rows"].items() if key.rpartition("-seed")[0] == name]
        table.append(
            [
                name,
                str(one["n"]),
                *(_spread([100 * row["test"]["coco"][figure] for row in rows]) for figure in ("ap50", "ap")),
                f"{statistics.mean(row['epochs'] for row in rows):.1f}",
            ]
        )
    return f"{result['what']}.\n\n{markdown(['', 'seeds', 'test mAP@.5 %', 'test mAP %', 'epochs'], table)}"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def passes_text(result: dict[str, Any]) -> str:
    """What each switch of the paper's table 9 gains, and what it costs."""
    table = [
        [name, str(one["n"]), *(_gain(one, figure) for figure in ("ap50", "ap")), f"{one['time']:.1f}"]
        for name, one in result["switches"].items()
    ]
    head = ["", "n", "mAP@.5 % (gain)", "mAP % (gain)", "time"]
    return (
        f"`python -m benchmarks.detection_passes`: {result['what']}. Gains in points, with their standard deviation over the n, against "
        f"the same detectors alone; times are multiples of one pass of one detector.\n\n{markdown(head, table)}"
    )


def _gain(one: dict[str, Any], figure: str) -> str:
    spread = "" if one[f"{figure}_deviation"] is None else f" ± {one[f'{figure}_deviation']:.1f}"
    return f"{one[figure]:.1f} ({one[f'{figure}_gain']:+.1f}{spread})"
