"""The page that ``deepres shrink`` writes: how the residuals shrank, what went when, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from deepres.report import LAYOUT, Page
from deepres.shrinking.api import ShrinkResult

HEAD = ["target", "blocks", "time", "weights", "validation error", "test error"]


def rows(every: Sequence[ShrinkResult]) -> list[list[str]]:
    """One row a target, for the terminal and for the page."""
    return [
        [
            one.target,
            f"{one.blocks[1]} of {one.blocks[0]}",
            f"{100 * one.time:.0f} % ({100 * one.time_spread[0]:.0f} to {100 * one.time_spread[1]:.0f})",
            f"{100 * one.params[1] / one.params[0]:.0f} %",
            f"{one.result.val_error:.2f} %",
            f"{one.result.test.top1:.2f} %",
        ]
        for one in every
    ]


def page(every: Sequence[ShrinkResult], *, name: str, data: str, footer: str) -> Page:
    """One network shrunk to one target, or to several."""
    built = Page(f"{name} with less depth", f"Inverse Curriculum Training on {data}.", footer)
    if len(every) > 1 or every[0].before is not None:
        built.heading("What it costs")
        built.table("Time is a forward pass's against the whole network's, measured side by side", HEAD, rows(every))
        built.figure(
            _frontier(every),
            "Validation error against the time that a forward pass takes. The bars are the middle half of the measured ratios.",
        )
    for one in every:
        if len(every) > 1:
            built.heading(f"To {one.target}")
        built.said(one.summary())
        built.figure(
            _sizes(one),
            "Each block's residual against its shortcut, |f(x)| / |x|, after each epoch; from input (bottom) to output (top). White is "
            "a block that is the identity, and gone when pressing ends.",
        )
        built.figure(_course(one), "Errors over the epochs, and how many blocks were identities by then.")
        when = sorted(one.closed_at.items(), key=lambda pair: pair[1])
        built.table(
            "What went, and when it had become the identity", ["block", "step"], [[path, str(step)] for path, step in when]
        )
    return built


def _frontier(every: Sequence[ShrinkResult]) -> go.Figure:
    figure = go.Figure(layout=LAYOUT)
    shown = sorted(every, key=lambda one: one.time)
    figure.add_scatter(
        x=[100 * one.time for one in shown],
        y=[one.result.val_error for one in shown],
        error_x={
            "symmetric": False,
            "array": [100 * (one.time_spread[1] - one.time) for one in shown],
            "arrayminus": [100 * (one.time - one.time_spread[0]) for one in shown],
            "thickness": 1,
        },
        text=[one.target for one in shown],
        hovertemplate="%{text}: %{y:.2f} % at %{x:.0f} % of the time",
        mode="lines+markers",
        name="shrunk",
        line={"color": "#2f6fde"},
    )
    if every[0].before is not None:
        figure.add_scatter(
            x=[100], y=[every[0].before], mode="markers", name="as given", marker={"color": "#d1495b", "size": 10}
        )
    figure.update_xaxes(title_text="time of a forward pass, % of the whole network's")
    figure.update_yaxes(title_text="validation error, %")
    return figure


def _sizes(one: ShrinkResult) -> go.Figure:
    values = [[glance.sizes[i] for glance in one.history] for i in range(len(one.units))]
    figure = go.Figure(layout={"margin": LAYOUT["margin"]})
    figure.add_heatmap(
        x=[glance.epoch for glance in one.history],
        y=list(range(1, len(one.units) + 1)),
        z=[[math.log10(v) if v > 0 else None for v in row] for row in values],
        customdata=[[[name, v] for v in row] for name, row in zip(one.units, values, strict=True)],
        hovertemplate="%{customdata[0]}, epoch %{x}: %{customdata[1]:.3g}",
        colorscale="Viridis",
        reversescale=True,
        zmin=-2,
        colorbar={"title": "log10"},
        name="",
    )
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text="block")
    return figure


def _course(one: ShrinkResult) -> go.Figure:
    figure = go.Figure(layout=LAYOUT)
    epochs = [record.epoch for record in one.result.history]
    figure.add_scatter(
        x=epochs, y=[r.train_error for r in one.result.history], name="training error, %", line={"color": "#2f6fde"}
    )
    figure.add_scatter(
        x=epochs, y=[r.val_error for r in one.result.history], name="validation error, %", line={"color": "#d1495b"}
    )
    figure.add_scatter(
        x=[g.epoch for g in one.history],
        y=[g.gone for g in one.history],
        name="identities",
        line={"color": "#6b7280", "shape": "hv"},
        yaxis="y2",
    )
    right = {"overlaying": "y", "side": "right", "title": "blocks that are identities", "range": [0, len(one.units)]}
    figure.update_layout(yaxis2={**right, "dtick": max(1, len(one.units) // 8), "showgrid": False})
    figure.update_layout(margin={**LAYOUT["margin"], "r": 70})  # type: ignore[dict-item]
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text="error, %", rangemode="tozero", selector={"overlaying": None})
    return figure
