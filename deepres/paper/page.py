"""The page of ``deepres paper``: each claim, whether it held, and our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from deepres.paper.lab import Curves, Outcome
from deepres.report import Page, Table, charts


def claim_table(outcome: Outcome) -> Table:
    """Our figures and the paper's, one row each."""
    published = (f"{row.paper:g} {row.unit}" if isinstance(row.paper, float) else row.paper or "" for row in outcome.rows)
    rows = [[row.label, row.text(), paper] for row, paper in zip(outcome.rows, published, strict=True)]
    return Table("Mean and standard deviation over the seeds", ["", "ours", "the paper"], rows)


def verdict(outcome: Outcome) -> str:
    """Sentence that says whether the claim holds, and why."""
    return f"The claim {'holds' if outcome.holds else 'does not hold'} here. {outcome.why}"


def differs(outcome: Outcome) -> str:
    """Sentence that lists the differences from the paper."""
    return f"Differences from the paper: {outcome.differs}; {outcome.seeds} seed{'s' if outcome.seeds > 1 else ''}."


def paper_page(outcomes: Sequence[Outcome], footer: str) -> Page:
    """Page about all outcomes."""
    held = sum(outcome.holds for outcome in outcomes)
    built = Page(
        "The claims of deep residual learning",
        f"{held} of {len(outcomes)} claims hold here. {differs(outcomes[0])}" if outcomes else "No experiment was run.",
        footer,
    )
    if len(outcomes) > 1:
        rows = [[outcome.title, outcome.source, "yes" if outcome.holds else "no"] for outcome in outcomes]
        built.table(Table("All claims", ["claim", "source", "holds"], rows))
    for outcome in outcomes:
        built.heading(f"{outcome.title} ({outcome.source})")
        built.text(outcome.claim)
        built.summary([verdict(outcome), differs(outcome)])
        built.table(claim_table(outcome))
        for curves in outcome.figures:
            built.figure(charts.lines(_panel(curves)), curves.caption)
    return built


def _panel(curves: Curves) -> charts.Panel:
    series = [charts.Series(name, x, y) for name, x, y in curves.lines]
    return charts.Panel(charts.Axis(curves.x), charts.Axis(curves.y, log=curves.log), series)
