"""The page of ``deepres paper``: each claim, whether it held, and our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from deepres.paper.lab import Curves, Outcome
from deepres.report import Page

HEAD = ["", "ours", "the paper"]
_COLOURS = ("#2f6fde", "#d1495b", "#2a9d8f", "#f2a65a", "#9b5de5", "#5aa9e6")


def rows(outcome: Outcome) -> list[list[str]]:
    """For the terminal and for the page."""
    published = (f"{row.paper:g} {row.unit}" if isinstance(row.paper, float) else row.paper or "" for row in outcome.rows)
    return [[row.label, row.text(), paper] for row, paper in zip(outcome.rows, published, strict=True)]


def verdict(outcome: Outcome) -> str:
    return f"The claim {'holds' if outcome.holds else 'does not hold'} here. {outcome.why}"


def differs(outcome: Outcome) -> str:
    return f"Against the paper: {outcome.differs}; {outcome.seeds} seed{'s' if outcome.seeds > 1 else ''}."


def _figure(curves: Curves) -> go.Figure:
    figure = go.Figure(layout={"margin": {"t": 20, "l": 70, "r": 10, "b": 50}, "legend": {"orientation": "h", "y": -0.2}})
    for (name, x, y), colour in zip(curves.lines, _COLOURS * len(curves.lines), strict=False):
        figure.add_scatter(x=x, y=y, name=name, line={"color": colour}, mode="lines")
    figure.update_xaxes(title_text=curves.x)
    figure.update_yaxes(title_text=curves.y, **({"type": "log", "exponentformat": "power"} if curves.log else {}))
    return figure


def page(outcomes: Sequence[Outcome], footer: str) -> Page:
    held = sum(outcome.holds for outcome in outcomes)
    built = Page(
        "The claims of deep residual learning, as runs",
        f"{held} of {len(outcomes)} claims held. {differs(outcomes[0])}" if outcomes else "Nothing was run.",
        footer,
    )
    if len(outcomes) > 1:
        built.table(
            "All claims",
            ["claim", "where", "held"],
            [[outcome.title, outcome.source, "yes" if outcome.holds else "no"] for outcome in outcomes],
        )
    for outcome in outcomes:
        built.heading(f"{outcome.title} ({outcome.source})")
        built.text(outcome.claim)
        built.said([verdict(outcome), differs(outcome)])
        built.table("Mean and standard deviation over the seeds", HEAD, rows(outcome))
        for curves in outcome.figures:
            built.figure(_figure(curves), curves.caption)
    return built
