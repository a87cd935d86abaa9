"""The page that ``deepres ghost`` writes: the frontier, the blocks that run for each class, easy and hard inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from deepres.data import Data
from deepres.ghosting.make import GhostResult
from deepres.ghosting.points import Point, pareto_front
from deepres.lens.examples import pixels_of
from deepres.report import Page, Table, charts, data_uri, share, share_range

_CLASSES_SHOWN = 60  # shown in a chart


def ghost_table(made: GhostResult) -> Table:
    """Time of a call, one row for each batch size."""
    rows = [[str(batch), share(ratio), share_range(low, high)] for batch, (ratio, low, high) in made.times.items()]
    return Table(
        "Time of a call relative to the whole network's, timed in alternating turns",
        ["batch", "median", "middle half of the turns"],
        rows,
    )


def ghost_page(made: GhostResult, *, name: str, data: str, footer: str) -> Page:
    """Page about one ghost."""
    built = Page(f"{name} as a ghost", f"Ghost Inference on {data}.", footer)
    built.summary(made.summary())
    built.table(ghost_table(made))
    built.heading("Error against time")
    built.figure(
        _frontier(made),
        "Validation error and time of every setting that was tried. These times are estimated from the blocks that ran and their "
        "measured costs; the times in the table above are measured. The line is the Pareto front: no other setting is better in both.",
    )
    built.heading("Blocks that run for each class")
    built.figure(
        _map(made),
        "Share of the test inputs of each class for which each block was computed, from the first block (bottom) to the last (top). "
        "Dark cells are blocks that ran for every input, light cells blocks that were skipped.",
    )
    built.figure(_depth(made), "Mean share of the blocks that ran for the test inputs of each class.")
    if made.data is not None:
        _examples(built, made, made.data)
    return built


def _frontier(made: GhostResult) -> go.Figure:
    kinds = (
        ("by input", charts.BLUE, lambda p: p.settings.skip_threshold is not None and not p.settings.fixed),
        ("the same blocks for all", charts.ORANGE, lambda p: p.settings.fixed),
        (
            "early exits alone",
            charts.TEAL,
            lambda p: p.settings.skip_threshold is None and p.settings.exit_threshold is not None,
        ),
    )
    line = pareto_front(made.points)
    series = [
        charts.Series("Pareto front", [100 * p.time for p in line], [p.error for p in line], colour=charts.GREY, hover="")
    ]
    for label, colour, mine in kinds:
        shown = [p for p in made.points if mine(p)]
        if shown:
            series.append(_dots(shown, label, colour=colour, size=5, opacity=0.7))
    series.append(_dots([made.points[0]], "the whole network", colour=charts.RED, size=11))
    series.append(_dots([made.point], "selected", colour=charts.RED, size=15, ring=True))
    top = made.whole_error + max(5.0, 0.25 * (100 - made.whole_error))
    return charts.lines(
        charts.Panel(
            charts.Axis("time, % of the whole network's"),
            charts.Axis("validation error, %", limits=(min(p.error for p in made.points) - 0.5, top)),
            series,
        )
    )


def _dots(points: Sequence[Point], label: str, **style: Any) -> charts.Series:
    return charts.Series(
        label,
        [100 * p.time for p in points],
        [p.error for p in points],
        mode="markers",
        labels=[p.settings.describe() for p in points],
        hover="%{text}: %{y:.2f} % at %{x:.0f} % of the time",
        **style,
    )


def _map(made: GhostResult) -> go.Figure:
    by_class = dict(list(made.verified.by_class.items())[:_CLASSES_SHOWN])
    names = [block.path for block in made.model.blocks]
    values = [[100 * ran[i] for ran in by_class.values()] for i in range(len(names))]
    grid = charts.Grid(list(by_class), names, values, limits=(0, 100), unit=" %", colours="Blues", reverse=False)
    return charts.heatmap(grid, x=charts.Axis("class", categories=True), y=charts.Axis("block"))


def _depth(made: GhostResult) -> go.Figure:
    means = {name: 100 * sum(ran) / len(ran) for name, ran in made.verified.by_class.items()}
    shown = dict(sorted(means.items(), key=lambda pair: pair[1])[:_CLASSES_SHOWN])
    return charts.bars(
        list(shown),
        list(shown.values()),
        x=charts.Axis("class", categories=True),
        y=charts.Axis("blocks that ran, %", limits=(0, 100)),
        unit=" %",
    )


def _examples(built: Page, made: GhostResult, data: Data, count: int = 10) -> None:
    """Show the images that ran through the fewest and through the most blocks."""
    seen = made.verified
    order = sorted(range(seen.n), key=lambda i: seen.depth[i])
    if not order or seen.depth[order[0]] == seen.depth[order[-1]]:
        built.text("The same blocks ran for every test input.")
        return
    built.heading("Inputs with the fewest and the most blocks")
    for text, chosen in (("Fewest blocks:", order[:count]), ("Most blocks:", order[::-1][:count])):
        built.text(text)
        built.gallery([(data_uri(pixels_of(data.test, data.prepare, i)), _caption(made, data, i)) for i in chosen])


def _caption(made: GhostResult, data: Data, i: int) -> str:
    seen = made.verified
    return f"{data.classes[seen.labels[i]]}: {100 * seen.depth[i]:.0f} % of the blocks, {'right' if seen.right[i] else 'wrong'}"
