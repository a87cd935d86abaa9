"""The charts of the page that ``deepres look`` writes; each takes one network or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from deepres.lens.measurements import LookResult, SiteFinding
from deepres.lens.monitor import Snapshot
from deepres.report import charts

MARKERS = 80  # more sites than this are drawn as a line without markers


def by_site(
    looks: Sequence[LookResult], title: str, value: Callable[[LookResult, SiteFinding], float | None], log: bool = False
) -> go.Figure:
    """One number a site, from input to output."""
    series = [
        charts.Series(
            found.name,
            [site.index for site in found.sites],
            [value(found, site) for site in found.sites],
            mode="lines+markers" if len(found.sites) <= MARKERS else "lines",
            labels=[site.name for site in found.sites],
            hover="%{text}: %{y:.3g}",
        )
        for found in looks
    ]
    return charts.lines(charts.Panel(charts.Axis("site"), charts.Axis(title, log=log), series))


def single_ablations(looks: Sequence[LookResult]) -> go.Figure:
    """The change of the error without each branch, with its interval."""
    series = []
    for found in looks:
        cut = [(site, site.ablation) for site in found.sites if site.ablation]
        series.append(
            charts.Series(
                found.name,
                [site.index for site, _ in cut],
                [ablation.change for _, ablation in cut],
                mode="markers",
                labels=[site.name for site, _ in cut],
                hover="%{text}: %{y:+.2f} points",
                y_bars=([ablation.low for _, ablation in cut], [ablation.high for _, ablation in cut]),
            )
        )
    return charts.lines(charts.Panel(charts.Axis("site left out"), charts.Axis("change of error, points"), series))


def several_ablations(looks: Sequence[LookResult]) -> go.Figure:
    """Fig. 5 of Veit et al. 2016: many branches left out, many blocks exchanged; beside it pairs against their sums."""
    many, pairs = [], []
    for found, colour in zip(looks, charts.COLOURS * len(looks), strict=False):
        counts = [d.count for d in found.deletions]
        errors = [d.error for d in found.deletions]
        ends = ([d.error - d.spread for d in found.deletions], [d.error + d.spread for d in found.deletions])
        many.append(charts.Series(f"{found.name}, left out", counts, errors, mode="lines+markers", y_bars=ends, colour=colour))
        if any(d.swapped is not None for d in found.deletions):
            swapped = [d.swapped for d in found.deletions]
            many.append(charts.Series(f"{found.name}, exchanged", counts, swapped, colour=colour, dash="dot"))
        alone = {site.name: site.ablation.change for site in found.sites if site.ablation}
        pairs.append(
            charts.Series(
                f"{found.name}, pairs",
                [sum(alone[name] for name in pair.what) for pair in found.pairs],
                [pair.change for pair in found.pairs],
                mode="markers",
                labels=[" and ".join(pair.what) for pair in found.pairs],
                hover="%{text}: %{y:+.2f} points together, %{x:+.2f} as a sum",
                colour=colour,
                size=5,
                legend=False,
            )
        )
    count, error = charts.Axis("number of branches or pairs", log=True, tick="L2"), charts.Axis("error, %", from_zero=True)
    expected, together = charts.Axis("sum of the two changes, points"), charts.Axis("change without both, points")
    return charts.lines(
        charts.Panel(count, error, many, "several at random"), charts.Panel(expected, together, pairs, "pairs", diagonal=True)
    )


def path_lengths_figure(looks: Sequence[LookResult]) -> go.Figure:
    """Fig. 6 of Veit et al. 2016: the gradient by length of the path."""
    shown = [(found.name, found.paths) for found in looks if found.paths is not None]
    one = [charts.Series(name, paths.lengths, paths.magnitude) for name, paths in shown]
    every = [charts.Series(name, paths.lengths, paths.share) for name, paths in shown]
    length = charts.Axis("branches on the path")
    return charts.lines(
        charts.Panel(length, charts.Axis("gradient norm", log=True), one, "one path of that length"),
        charts.Panel(length, charts.Axis("share of the gradient"), every, "all paths of that length"),
    )


def layer_responses(looks: Sequence[LookResult]) -> go.Figure:
    """Fig. 7 of He et al. 2015: the standard deviation of each layer's output."""
    series = [
        charts.Series(
            found.name,
            list(range(1, len(found.layers) + 1)),
            [layer.deviation for layer in found.layers],
            labels=[layer.name for layer in found.layers],
            hover="%{text}: %{y:.3g}",
        )
        for found in looks
    ]
    return charts.lines(charts.Panel(charts.Axis("layer"), charts.Axis("standard deviation", log=True), series))


def over_training(snapshots: Sequence[Snapshot]) -> go.Figure:
    """Each site at each snapshot: the size of its branch, and its gradient norm.

    A cell is empty where a snapshot has no site of that name, as after blocks were removed.
    """
    names = [site.name for site in snapshots[0].sites]
    epochs = [snapshot.epoch for snapshot in snapshots]
    columns = [{site.name: site for site in snapshot.sites} for snapshot in snapshots]
    grids = [
        charts.Grid(
            epochs,
            names,
            [[getattr(column.get(name), key, None) for column in columns] for name in names],
            title,
            log=True,
        )
        for title, key in (("|f(x)| / |x|", "ratio"), ("gradient norm", "gradient"))
    ]
    return charts.heatmap(*grids, x=charts.Axis("epoch"), y=charts.Axis("site"))
