"""The part of docs/results.md on inference engines: who is fastest at each precision, and every candidate's images per second."""

from __future__ import annotations

from typing import Any

from benchmarks.engine_rivals import OURS, RIVALS

PRECISIONS = {
    "deepres float32": "float32",
    "deepres bf16 close": "bf16",
    "deepres bf16 exact": "bf16, exact answers",
    "deepres int8": "int8",
}


def engine_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(sentence, head, rows) of each table: ours against the fastest rival of equal precision, then all candidates."""
    rows = result["rows"]
    against = []
    for key, row in rows.items():
        for how, precision in PRECISIONS.items():
            one = row["against_best_rival"].get(how)
            if one is None:
                continue
            mine, theirs = (row["candidates"][name] for name in (how, one["rival"]))
            against.append(
                [
                    key + ("" if row["trained"] else " *"),
                    precision,
                    f"{mine['images_per_second']:,.1f} ({_chosen(row['names'][how])})",
                    f"{theirs['images_per_second']:,.1f} ({one['rival']})",
                    _range(one),
                    _range(row.get("copies", {}).get(OURS[how])),
                ]
            )
    named = [how for how in (*RIVALS, *OURS) if any(how in row["candidates"] for row in rows.values())]
    everyone = [[how, *(_speed_of(row, how) for row in rows.values())] for how in named]
    int8 = [[how, *(_rise(row) for row in rows.values())] for how in ("int8: change of the validation error, points",)]
    int8 += [["int8 against bf16, ours", *(_int8(row) for row in rows.values())]]
    return [
        (
            "Ours against the fastest rival of equal precision; a ratio above 1 is faster (median and range over the turns). Two "
            "processes of one rival, OpenVINO tuned, differ as in the last column. Networks with * have random weights and get noise, of "
            "which many more answers are close calls than of photographs.",
            ["network", "precision", "`deepres.optimize`, images/s", "fastest rival, images/s", "ratio", "two copies"],
            against,
        ),
        ("All candidates, images/s (median):", ["", *rows], [*everyone, *int8]),
    ]


def _range(one: dict[str, float] | None) -> str:
    return f"{one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})" if one else "not measured"


def _chosen(name: str) -> str:
    """The engine in "deepres int8: openvino int8, close answers"."""
    return name.partition(": ")[2].split(" ")[0]


def _speed_of(row: dict[str, Any], how: str) -> str:
    if how in row["candidates"]:
        return f"{row['candidates'][how]['images_per_second']:,.1f}"
    return "failed" if how in row["failed"] else ""


def _rise(row: dict[str, Any]) -> str:
    rises = [one["rise"] for one in row["measured_by_optimize"] if one.get("rise") is not None and not one["problem"]]
    return f"{min(rises):+.2f}" if rises and row["trained"] else ""


def _int8(row: dict[str, Any]) -> str:
    one = row["int8_against_bf16"]
    return f"{one['ratio']:.2f}" if one else ""
