"""The parts of docs/results.md on the control of ghosts and on ghosts of pretrained networks."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tell_format import markdown, seeds_of


def control_text(result: dict[str, Any]) -> str:
    trials = result["trials"]
    depth, shallow = result["blocks"]
    rows = [
        [
            str(one["seed"]),
            f"{one['spearman']:.3f}",
            f"{one['error']['whole']:.2f} %",
            f"{one['error']['ghost']:.2f} %",
            f"{one['blocks_used']:.1f} of {depth}",
            f"{one['shallow_error']:.2f} %",
        ]
        for one in trials
    ]
    head = ["seed", "rank correlation of blocks used with blocks needed", "test error of the network", "of its ghost"]
    head += ["blocks used, mean", f"test error of {shallow} blocks, trained as long"]
    needs = list(trials[0]["used_by_needed"])
    used = [[f"{statistics.fmean(one['used_by_needed'][need] for one in trials):.1f}" for need in needs]]
    accuracy = trials[0]["accuracy"]
    distances = list(next(iter(accuracy.values())))
    return "\n\n".join(
        [
            f"`python -m benchmarks.control`: {result['what']}; {seeds_of(result)}. The label says whether two marked bits of a row are "
            "equal, and an input needs the blocks that it takes for the receptive field to reach both. The ghost has exits alone and a "
            f"limit of {result['allowed']:g} points; its time is counted in blocks. This shows that the instruments work; it is no result "
            "about networks that people use.",
            markdown(head, rows),
            "Mean of the blocks that the ghost uses, by the blocks that the input needs:",
            markdown(["blocks needed", *needs], [["blocks used", *used[0]]]),
            "Accuracy by the distance of the marks, first seed:",
            markdown(["", *distances], [[name, *(f"{by[one]:.0f} %" for one in distances)] for name, by in accuracy.items()]),
        ]
    )


def pretrained_text(result: dict[str, Any]) -> str:
    rows = []
    for way, trials in result["ways"].items():
        for batch in trials[0]:
            of = [one[batch] for one in trials]
            mean = {key: statistics.fmean(one[key] for one in of) for key in ("error", "rise", "macs", "time")}
            low, high = min(one["quartiles"][0] for one in of), max(one["quartiles"][1] for one in of)
            cells = [f"{mean['error']:.2f} %", f"{mean['rise']:+.2f}", f"{100 * mean['macs']:.0f} %"]
            rows.append([f"{way}, batch {batch}", *cells, f"{100 * mean['time']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"])
    head = ["", "test error", "rise, points", "multiply-adds", "time of a call (middle half of the turns)"]
    return (
        f"`python -m benchmarks.ghost_pretrained`: {result['what']}; {seeds_of(result)}. Settings were chosen on "
        f"{result['chosen_on']:,} validation images and confirmed on {result['confirmed_on']:,}, with a limit of {result['allowed']:g} "
        "points. Multiply-adds and times are shares of the whole network's; times are measured in alternation, everything included.\n\n"
        + markdown(head, rows)
    )
