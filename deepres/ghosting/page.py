"""The page that ``deepres ghost`` writes: the frontier, which blocks ghost for whom, easy and hard inputs."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from deepres.data import Data, Resident, open_image
from deepres.ghosting.choose import Point, best, describe_settings
from deepres.ghosting.make import GhostResult
from deepres.report import LAYOUT, Page, data_uri

HEAD = ["batch", "time of a call", "middle half"]
MOST = 60  # classes shown


def rows(made: GhostResult) -> list[list[str]]:
    """One row a batch size, for the terminal and for the page."""
    return [
        [str(batch), f"{100 * ratio:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"]
        for batch, (ratio, low, high) in made.times.items()
    ]


def page(made: GhostResult, *, name: str, data: str, footer: str) -> Page:
    built = Page(f"{name} as a ghost", f"Depth by input on {data}.", footer)
    built.said(made.summary())
    built.table("Time against the whole network's, measured side by side", HEAD, rows(made))
    built.heading("What depth buys")
    built.figure(
        _frontier(made),
        "Validation error against time, of every setting that was tried. Times here are foretold from the blocks that ran and each "
        "block's measured share; the table above is measured. The line joins the settings that no other beats.",
    )
    built.heading("Which blocks ghost for whom")
    built.figure(
        _map(made),
        "Share of a class's test inputs for which each block was computed. Rows are blocks, the input's side at the bottom; dark is a "
        "block that ran for everyone, light a ghost.",
    )
    built.figure(_depth(made), "How much of the network the test inputs of each class used: mean share of the blocks that ran.")
    if made.data is not None:
        _examples(built, made, made.data)
    return built


def _frontier(made: GhostResult) -> go.Figure:
    figure = go.Figure(layout=LAYOUT)
    kinds = (
        ("by input", "#2f6fde", lambda p: p.settings.skip is not None and not p.settings.fixed),
        ("the same blocks for all", "#e09f3e", lambda p: p.settings.fixed),
        ("leaving alone", "#3a9d5d", lambda p: p.settings.skip is None and p.settings.leave is not None),
    )
    line = best(made.points)
    figure.add_scatter(
        x=[100 * p.time for p in line],
        y=[p.error for p in line],
        mode="lines",
        line={"color": "#9ca3af"},
        name="the best",
        hoverinfo="skip",
    )
    for label, colour, mine in kinds:
        shown = [p for p in made.points if mine(p)]
        if shown:
            _dots(figure, shown, label, {"color": colour, "size": 5, "opacity": 0.7})
    _dots(figure, [made.points[0]], "the whole network", {"color": "#d1495b", "size": 11})
    _dots(figure, [made.point], "chosen", {"color": "rgba(0,0,0,0)", "size": 15, "line": {"width": 3, "color": "#d1495b"}})
    top = made.whole_error + max(5.0, 0.25 * (100 - made.whole_error))
    figure.update_xaxes(title_text="time, % of the whole network's")
    figure.update_yaxes(title_text="validation error, %", range=[min(p.error for p in made.points) - 0.5, top])
    return figure


def _dots(figure: go.Figure, points: Sequence[Point], label: str, marker: dict[str, object]) -> None:
    figure.add_scatter(
        x=[100 * p.time for p in points],
        y=[p.error for p in points],
        text=[describe_settings(p.settings) for p in points],
        hovertemplate="%{text}: %{y:.2f} % at %{x:.0f} % of the time",
        mode="markers",
        name=label,
        marker=marker,
    )


def _map(made: GhostResult) -> go.Figure:
    by_class = dict(list(made.verified.by_class.items())[:MOST])
    names = [unit.path for unit in made.model.units]
    values = [[100 * ran[i] for ran in by_class.values()] for i in range(len(names))]
    figure = go.Figure(layout={"margin": LAYOUT["margin"]})
    figure.add_heatmap(
        x=list(by_class),
        y=list(range(1, len(names) + 1)),
        z=values,
        customdata=[[name] * len(by_class) for name in names],
        hovertemplate="%{customdata}: computed for %{z:.0f} % of %{x}<extra></extra>",
        colorscale="Blues",
        zmin=0,
        zmax=100,
        colorbar={"title": "%"},
    )
    figure.update_xaxes(title_text="class", type="category")
    figure.update_yaxes(title_text="block")
    return figure


def _depth(made: GhostResult) -> go.Figure:
    means = {name: 100 * sum(ran) / len(ran) for name, ran in made.verified.by_class.items()}
    shown = dict(sorted(means.items(), key=lambda pair: pair[1])[:MOST])
    figure = go.Figure(layout=LAYOUT)
    figure.add_bar(
        x=list(shown), y=list(shown.values()), marker={"color": "#2f6fde"}, hovertemplate="%{x}: %{y:.0f} %<extra></extra>"
    )
    figure.update_xaxes(title_text="class", type="category")
    figure.update_yaxes(title_text="blocks that ran, %", range=[0, 100])
    return figure


def _examples(built: Page, made: GhostResult, data: Data, count: int = 10) -> None:
    """Images that needed least and most, side by side."""
    seen = made.verified
    order = sorted(range(seen.n), key=lambda i: seen.depth[i])
    if not order or seen.depth[order[0]] == seen.depth[order[-1]]:
        built.text("Every test input ran through the same blocks.")
        return
    built.heading("Easy and hard")
    for text, chosen in (("Least depth:", order[:count]), ("Most depth:", order[::-1][:count])):
        built.text(text)
        built.gallery([(data_uri(_pixels(data, i)), _caption(made, data, i)) for i in chosen])


def _caption(made: GhostResult, data: Data, i: int) -> str:
    seen = made.verified
    return f"{data.classes[seen.labels[i]]}: {100 * seen.depth[i]:.0f} % of the blocks, {'right' if seen.right[i] else 'wrong'}"


def _pixels(data: Data, i: int):  # type: ignore[no-untyped-def]
    """The i-th test image as bytes (C, H, W)."""
    if isinstance(data.test, Resident):
        return data.test.pixels[i]
    return data.prepare.image(open_image(data.test.items[i].read(), data.prepare.channels))
