"""The page that ``deepres shrink`` writes: error against time, and residual ratios over the epochs."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from deepres.report import Page, Table, charts, percent, share, share_range
from deepres.shrinking.api import ShrinkResult

SMALLEST = 0.01  # ratio |f(x)| / |x| at and below which a block has the map's lightest colour


def shrink_table(results: Sequence[ShrinkResult]) -> Table:
    """Time, size and errors of each result, one row for each target."""
    rows = [
        [
            one.target,
            f"{one.blocks[1]} of {one.blocks[0]}",
            f"{share(one.time)} ({share_range(*one.time_spread)})",
            share(one.params[1] / one.params[0]),
            percent(one.result.val_error),
            percent(one.result.test.top1),
        ]
        for one in results
    ]
    return Table(
        "Time of a forward pass relative to the whole network's, timed in alternating turns: median, and middle half of the turns",
        ["target", "blocks", "time", "weights", "validation error", "test error"],
        rows,
    )


def shrink_page(results: Sequence[ShrinkResult], *, name: str, data: str, footer: str) -> Page:
    """Page about one network that was shrunk to one target, or to several."""
    built = Page(f"{name} with less depth", f"Inverse Curriculum Training on {data}.", footer)
    if len(results) > 1 or results[0].error_before is not None:
        built.heading("Error against time")
        built.table(shrink_table(results))
        built.figure(
            _frontier(results),
            "The curve shows the validation error against the time of a forward pass. The bars show the middle half of the "
            "measured ratios.",
        )
    for one in results:
        if len(results) > 1:
            built.heading(f"Target {one.target}")
        built.summary(one.summary())
        built.figure(
            _ratios(one),
            "The map shows the residual ratio |f(x)| / |x| of each block after each epoch, from the input (bottom) to the output "
            "(top). An empty cell is a block that is the identity or was removed.",
        )
        built.figure(
            _course(one),
            "Training and validation error of each epoch, and the number of blocks that were the identity at its end.",
        )
        when = sorted(one.identity_at.items(), key=lambda pair: pair[1])
        rows = [[path, f"{step:,}"] for path, step in when]
        built.table(Table("Removed blocks, and the training step at which each became the identity", ["block", "step"], rows))
    return built


def _frontier(results: Sequence[ShrinkResult]) -> go.Figure:
    shown = sorted(results, key=lambda one: one.time)
    series = [
        charts.Series(
            "shrunk",
            [100 * one.time for one in shown],
            [one.result.val_error for one in shown],
            mode="lines+markers",
            labels=[one.target for one in shown],
            hover="%{text}: %{y:.2f} % at %{x:.0f} % of the time",
            x_bars=([100 * one.time_spread[0] for one in shown], [100 * one.time_spread[1] for one in shown]),
        )
    ]
    if results[0].error_before is not None:
        series.append(
            charts.Series("the whole network", [100], [results[0].error_before], mode="markers", colour=charts.RED, size=10)
        )
    time = charts.Axis("time of a forward pass, % of the whole network's")
    return charts.lines(charts.Panel(time, charts.Axis("validation error, %"), series))


def _ratios(one: ShrinkResult) -> go.Figure:
    values = [[after.ratios[i] for after in one.history] for i in range(len(one.block_paths))]
    largest = max((ratio for row in values for ratio in row), default=1.0)
    grid = charts.Grid(
        [after.epoch for after in one.history], one.block_paths, values, log=True, limits=(SMALLEST, max(largest, 2 * SMALLEST))
    )
    return charts.heatmap(grid, x=charts.Axis("epoch"), y=charts.Axis("block"))


def _course(one: ShrinkResult) -> go.Figure:
    epochs = [record.epoch for record in one.result.history]
    series = [
        charts.Series("training error", epochs, [record.train_error for record in one.result.history]),
        charts.Series("validation error", epochs, [record.val_error for record in one.result.history]),
        charts.Series(
            "identities",
            [after.epoch for after in one.history],
            [after.identities for after in one.history],
            colour=charts.GREY,
            steps=True,
            second=True,
        ),
    ]
    blocks = charts.Axis(
        "blocks that are the identity", limits=(0, len(one.block_paths)), tick=max(1, len(one.block_paths) // 8)
    )
    return charts.lines(
        charts.Panel(charts.Axis("epoch"), charts.Axis("error, %", from_zero=True), series, right=blocks), unified=True
    )
