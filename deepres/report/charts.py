"""Charts of a page: lines and points with error bars, heat maps and bars, in one set of colours and one layout.

A chart is one ``plotly.graph_objects.Figure``; ``Page.figure`` takes it. Colours of text and grid are set by the page, which
knows whether it is shown on white or on near-black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# All are readable on white and on near-black.
BLUE, RED, TEAL, ORANGE, VIOLET, SKY, GREY = "#2f6fde", "#d1495b", "#2a9d8f", "#e8963a", "#9b5de5", "#5aa9e6", "#8a93a3"
COLOURS = (BLUE, RED, TEAL, ORANGE, VIOLET, SKY)  # of the first series, the second, ...
FEW = 20  # points, up to which a line has markers
TOP = 34  # pixels above a chart, for the panels' titles

Bounds = tuple[Sequence[float], Sequence[float]]  # lower and upper ends of error bars, in the axis's units


@dataclass(frozen=True)
class Axis:
    """An axis of a panel. ``tick``: the distance between ticks, in Plotly's terms."""

    title: str = ""
    log: bool = False
    from_zero: bool = False
    limits: tuple[float, float] | None = None
    categories: bool = False
    tick: float | str | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments of Plotly's axis."""
        options: dict[str, Any] = {"title": {"text": self.title}}
        if self.log:
            options |= {"type": "log", "exponentformat": "power"}
        if self.categories:
            options["type"] = "category"
        if self.from_zero:
            options["rangemode"] = "tozero"
        if self.limits is not None:
            options["range"] = [math.log10(end) for end in self.limits] if self.log else list(self.limits)
        if self.tick is not None:
            options["dtick"] = self.tick
        return options


@dataclass(frozen=True)
class Series:
    """One line, or one set of points, of equally long ``x`` and ``y``. A missing value (None) interrupts a line."""

    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    mode: Literal["lines", "markers", "lines+markers"] | None = None  # else a line, of few points with markers
    labels: Sequence[str] = ()  # one a point, for the text that is shown on hovering
    hover: str | None = None  # Plotly's template of that text; %{text} is the label; empty: nothing is shown
    x_bars: Bounds | None = None
    y_bars: Bounds | None = None
    colour: str | None = None  # else one of COLOURS, by the series' place
    dash: Literal["solid", "dot", "dash"] = "solid"
    width: float = 2.0  # of the line, pixels
    size: float = 6.0  # of the markers, pixels
    opacity: float = 1.0  # of the markers
    ring: bool = False  # markers are circles that leave what is inside visible
    steps: bool = False  # the line keeps its height until the next point
    second: bool = False  # y is read on the right-hand axis
    legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One coordinate system with its series."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    title: str = ""
    diagonal: bool = False  # also draw y = x
    right: Axis | None = field(default=None)  # of the series that are ``second``


def lines(*panels: Panel, shared_y: bool = False, unified: bool = False) -> go.Figure:
    """Series in one or several panels side by side.

    Series of one name are one entry of the legend and share a colour. ``shared_y``: all panels have the first one's y axis.
    ``unified``: hovering shows all series at that x.
    """
    titles = tuple(panel.title for panel in panels)
    gap = 0.05 if shared_y else 0.12
    figure = make_subplots(
        cols=len(panels), subplot_titles=titles if any(titles) else None, shared_yaxes=shared_y,
        horizontal_spacing=gap if len(panels) > 1 else 0.0, specs=[[{"secondary_y": p.right is not None} for p in panels]],
    )  # fmt: skip
    colours = _colours(panels)
    listed: set[str] = set()
    for column, panel in enumerate(panels, 1):
        if panel.diagonal:
            figure.add_trace(_diagonal(panel), row=1, col=column)
        for one in panel.series:
            trace = _trace(one, colours[one.name], shown=one.legend and one.name not in listed)
            second = one.second if panel.right is not None else None
            figure.add_trace(trace, row=1, col=column, secondary_y=second)
            if one.legend:
                listed.add(one.name)
        figure.update_xaxes(**panel.x.options(), col=column)
        if column == 1 or not shared_y:
            first = False if panel.right is not None else None
            figure.update_yaxes(**panel.y.options(), row=1, col=column, secondary_y=first)
        else:  # Plotly lets an axis follow another only if both are of one type
            figure.update_yaxes(type=panels[0].y.options().get("type"), row=1, col=column)
        if panel.right is not None:
            figure.update_yaxes(**panel.right.options(), showgrid=False, row=1, col=column, secondary_y=True)
    return _laid_out(figure, hovermode="x unified" if unified else "closest", showlegend=len(listed) > 1)


@dataclass(frozen=True)
class Grid:
    """Values by row and column of a heat map. Rows are drawn from the bottom, numbered from 1; None leaves a cell empty."""

    columns: Sequence[Any]
    rows: Sequence[str]  # names, shown on hovering
    values: Sequence[Sequence[float | None]]  # (rows, columns)
    title: str = ""
    log: bool = False  # colours by the logarithm
    limits: tuple[float, float] | None = None  # of the colours
    unit: str = ""
    colours: str = "Viridis"
    reverse: bool = True  # small values are light


def heatmap(*grids: Grid, x: Axis, y: Axis) -> go.Figure:
    """One or several heat maps side by side, with a colour bar each."""
    titles = tuple(grid.title for grid in grids)
    figure = make_subplots(
        cols=len(grids), subplot_titles=titles if any(titles) else None, shared_yaxes=True,
        horizontal_spacing=0.14 if len(grids) > 1 else 0.0,
    )  # fmt: skip
    for column, grid in enumerate(grids, 1):
        shown = [[_shown(value, grid.log) for value in row] for row in grid.values]
        low, high = grid.limits or (None, None)
        figure.add_heatmap(
            x=list(grid.columns),
            y=list(range(1, len(grid.rows) + 1)),
            z=shown,
            zmin=_shown(low, grid.log),
            zmax=_shown(high, grid.log),
            customdata=[[[name, value] for value in row] for name, row in zip(grid.rows, grid.values, strict=True)],
            hovertemplate=f"%{{customdata[0]}}, {x.title} %{{x}}: %{{customdata[1]:.3g}}{grid.unit}<extra></extra>",
            colorscale=grid.colours,
            reversescale=grid.reverse,
            colorbar=_colour_bar(grid, shown, 1.0 if column == len(grids) else column / len(grids) - 0.06),
            row=1,
            col=column,
        )
    figure.update_xaxes(**x.options(), showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_yaxes(**y.options(), col=1)
    return _laid_out(figure, hovermode="closest", showlegend=False)


def bars(names: Sequence[str], values: Sequence[float], *, x: Axis, y: Axis, unit: str = "") -> go.Figure:
    """One bar a name."""
    figure = go.Figure()
    figure.add_bar(
        x=list(names), y=list(values), marker={"color": BLUE}, hovertemplate=f"%{{x}}: %{{y:.3g}}{unit}<extra></extra>"
    )
    figure.update_xaxes(**x.options())
    figure.update_yaxes(**y.options())
    return _laid_out(figure, hovermode="closest", showlegend=False)


def _laid_out(figure: go.Figure, **layout: Any) -> go.Figure:
    titled = bool(figure.layout.annotations)
    figure.update_layout(
        margin={"t": TOP if titled else 12, "l": 64, "r": 16, "b": 48},
        legend={"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
        **layout,
    )
    figure.update_annotations(font={"size": 14})
    figure.update_yaxes(automargin=True)
    return figure


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    names = list(dict.fromkeys(one.name for panel in panels for one in panel.series))
    fixed = {one.name: one.colour for panel in panels for one in panel.series if one.colour}
    return {name: fixed.get(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}


def _trace(one: Series, colour: str, shown: bool) -> go.Scatter:
    marker: dict[str, Any] = {"color": colour, "size": one.size, "opacity": one.opacity}
    if one.ring:
        marker |= {"color": "rgba(0,0,0,0)", "line": {"width": 3, "color": colour}}
    return go.Scatter(
        x=list(one.x),
        y=list(one.y),
        mode=one.mode or ("lines+markers" if len(one.x) <= FEW else "lines"),
        text=list(one.labels) or None,
        name=one.name,
        legendgroup=one.name,
        showlegend=shown,
        line={"color": colour, "dash": one.dash, "width": one.width, **({"shape": "hv"} if one.steps else {})},
        marker=marker,
        error_x=_bars(one.x, one.x_bars),
        error_y=_bars(one.y, one.y_bars),
        hovertemplate=one.hover or None,
        hoverinfo="skip" if one.hover == "" else None,
    )


def _bars(middle: Sequence[Any], bounds: Bounds | None) -> dict[str, Any] | None:
    if bounds is None:
        return None
    low, high = bounds
    return {
        "symmetric": False,
        "array": [end - value for value, end in zip(middle, high, strict=True)],
        "arrayminus": [value - end for value, end in zip(middle, low, strict=True)],
        "thickness": 1,
        "width": 3,
    }


def _diagonal(panel: Panel) -> go.Scatter:
    values = [value for one in panel.series for pair in (one.x, one.y) for value in pair if value is not None]
    ends = [min(values, default=0.0), max(values, default=1.0)]
    return go.Scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot", "width": 1}, hoverinfo="skip", showlegend=False
    )


def _shown(value: float | None, log: bool) -> float | None:
    if value is None or not log:
        return value
    return math.log10(value) if value > 0 else None


def _colour_bar(grid: Grid, shown: Sequence[Sequence[float | None]], x: float) -> dict[str, Any]:
    bar: dict[str, Any] = {"x": x, "thickness": 14, "outlinewidth": 0}
    if not grid.log:
        return bar | {"ticksuffix": grid.unit}
    # ticks are the values, not their logarithms
    known = [value for row in shown for value in row if value is not None]
    low = _shown(grid.limits[0], True) if grid.limits else min(known, default=0.0)
    high = _shown(grid.limits[1], True) if grid.limits else max(known, default=0.0)
    assert low is not None and high is not None
    steps = (1,) if high - low > 3 else (1, 3) if high - low > 1 else (1, 2, 5) if high - low > 0.5 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in decades for step in steps if low - 1e-9 <= power + math.log10(step) <= high + 1e-9]
    return bar | {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [f"{tick:.2g}{grid.unit}" for tick in ticks]}
