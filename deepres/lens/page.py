"""The page that ``deepres look`` writes: one network, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepres.lens.look import Look, SiteFinding
from deepres.lens.monitor import Glance
from deepres.lens.signals import EDGES
from deepres.lens.summary import summary
from deepres.report import Page, data_uri

_COLOURS = ("#2f6fde", "#d1495b", "#2a9d8f", "#9b5de5", "#f2a65a")
_LAYOUT = {"margin": {"t": 40, "l": 70, "r": 10, "b": 50}, "legend": {"orientation": "h", "y": -0.2}}


def _measures(found: Look) -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = [
        {"key": "ratio", "label": "branch against shortcut, |f(x)| / |x|", "unit": "", "log": True},
        {"key": "lesion", "label": "change of error when left out", "unit": " points", "log": False},
        {"key": "by_shortcut", "label": "gradient by the shortcut", "unit": " %", "log": False},
        {"key": "gradient", "label": "gradient norm", "unit": "", "log": True},
        {"key": "cosine", "label": "cosine between input and output", "unit": "", "log": False},
        {"key": "time", "label": "share of the time", "unit": " %", "log": False},
        {"key": "probe", "label": "error of a linear probe", "unit": " %", "log": False},
        {"key": "dead", "label": "dead channels", "unit": " %", "log": False},
    ]
    values = [_values(found, site) for site in found.sites]
    return [measure for measure in every if any(row[measure["key"]] is not None for row in values)]


def _values(found: Look, site: SiteFinding) -> dict[str, float | None]:
    back = site.gradient
    parts = back.shortcut + back.branch if back else 0.0
    return {
        "ratio": site.signal.ratio,
        "lesion": site.lesion.change if site.lesion else None,
        "by_shortcut": 100 * back.shortcut / parts if back and parts else None,
        "gradient": back.total if back else None,
        "cosine": site.signal.cosine,
        "time": 100 * site.time,
        "probe": found.probes.error[site.index - 1] if found.probes else None,
        "dead": 100 * site.signal.dead if site.signal.dead is not None else None,
    }


def _details(found: Look, site: SiteFinding) -> list[list[str]]:
    signal, back = site.signal, site.gradient
    rows = [
        ["|f(x)| / |x|", f"{signal.ratio:.3g} (80 % of examples {signal.spread[0]:.3g} to {signal.spread[1]:.3g})"],
        ["cosine, input to output", f"{signal.cosine:.3f}" if signal.cosine is not None else "the shape changes"],
        ["output, mean and deviation", f"{signal.mean:.3g}, {signal.variance**0.5:.3g}"],
    ]
    if signal.inactive is not None and signal.dead is not None:
        rows.append(["silent values, dead channels", f"{100 * signal.inactive:.1f} %, {100 * signal.dead:.1f} %"])
    if back:
        rows.append(["gradient", f"{back.total:.2g}"])
        rows.append(["by the shortcut, by the branch", f"{back.shortcut:.2g}, {back.branch:.2g}"])
    if site.lesion:
        lesion = site.lesion
        rows.append(["error when left out", f"{lesion.error:.2f} %"])
        rows.append(["change", f"{lesion.change:+.2f} points ({lesion.low:+.2f} to {lesion.high:+.2f})"])
    elif site.reshapes:
        rows.append(["error when left out", "cannot be: it changes the shape"])
    if found.probes:
        rows.append(["linear probe's error", f"{found.probes.error[site.index - 1]:.1f} %"])
    rows.append(["weights, share of the time", f"{site.params:,}, {100 * site.time:.1f} %"])
    return rows


def _chain(built: Page, found: Look) -> None:
    sites = [
        {
            "index": site.index,
            "name": site.name,
            "kind": site.kind,
            "stage": site.stage,
            "opens": site.reshapes,
            "values": _values(found, site),
            "details": _details(found, site),
            "histogram": list(site.signal.histogram),
            "lesion": {k: getattr(site.lesion, k) for k in ("change", "low", "high")} if site.lesion else None,
        }
        for site in found.sites
    ]
    built.chain(found.name, _measures(found), sites, EDGES)


def _by_site(looks: Sequence[Look], title: str, value: Callable[[SiteFinding], float | None], log: bool = False) -> go.Figure:
    figure = go.Figure(layout=_LAYOUT)
    for found, colour in zip(looks, _COLOURS * len(looks), strict=False):
        figure.add_scatter(
            x=[site.index for site in found.sites],
            y=[value(site) for site in found.sites],
            text=[site.name for site in found.sites],
            name=found.name,
            line={"color": colour},
            mode="lines+markers" if len(found.sites) < 80 else "lines",
            hovertemplate="%{text}: %{y:.3g}",
        )
    figure.update_xaxes(title_text="site")
    figure.update_yaxes(title_text=title, **({"type": "log", "exponentformat": "power"} if log else {}))
    return figure


def _lesions(looks: Sequence[Look]) -> go.Figure:
    figure = go.Figure(layout=_LAYOUT)
    for found, colour in zip(looks, _COLOURS * len(looks), strict=False):
        cut = [(site, site.lesion) for site in found.sites if site.lesion]
        figure.add_scatter(
            x=[site.index for site, _ in cut],
            y=[lesion.change for _, lesion in cut],
            error_y={
                "symmetric": False,
                "array": [lesion.high - lesion.change for _, lesion in cut],
                "arrayminus": [lesion.change - lesion.low for _, lesion in cut],
                "thickness": 1,
            },
            text=[site.name for site, _ in cut],
            mode="markers",
            marker={"color": colour},
            name=found.name,
            hovertemplate="%{text}: %{y:+.2f} points",
        )
    figure.update_xaxes(title_text="site left out")
    figure.update_yaxes(title_text="change of error, points")
    return figure


def _several(looks: Sequence[Look]) -> go.Figure:
    """Fig. 5 and 6 of Veit et al.: many blocks left out, many exchanged; and pairs against the sum of their parts."""
    titles = ("random branches left out, or pairs exchanged", "pairs: together against the sum of each alone")
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    for found, colour in zip(looks, _COLOURS * len(looks), strict=False):
        counts = [d.count for d in found.deletions]
        spread = {"array": [d.spread for d in found.deletions], "thickness": 1}
        errors = [d.error for d in found.deletions]
        figure.add_scatter(
            x=counts, y=errors, error_y=spread, name=f"{found.name}, left out", line={"color": colour}, row=1, col=1
        )
        if any(d.swapped is not None for d in found.deletions):
            moved = [d.swapped for d in found.deletions]
            figure.add_scatter(
                x=counts, y=moved, name=f"{found.name}, exchanged", line={"color": colour, "dash": "dot"}, row=1, col=1
            )
        alone = {site.name: site.lesion.change for site in found.sites if site.lesion}
        figure.add_scatter(
            x=[sum(alone[name] for name in pair.what) for pair in found.pairs],
            y=[pair.change for pair in found.pairs],
            text=[" and ".join(pair.what) for pair in found.pairs],
            mode="markers",
            marker={"color": colour, "size": 5},
            name=found.name,
            showlegend=False,
            hovertemplate="%{text}: %{y:+.2f} points, %{x:+.2f} expected",
            row=1,
            col=2,
        )
    figure.update_layout(**_LAYOUT)
    figure.update_xaxes(title_text="how many", type="log", dtick="L2", col=1)
    figure.update_yaxes(title_text="error, %", col=1)
    figure.update_xaxes(title_text="sum of the two alone, points", col=2)
    figure.update_yaxes(title_text="the two together, points", col=2)
    return figure


def _paths(looks: Sequence[Look]) -> go.Figure:
    figure = make_subplots(
        cols=2, subplot_titles=("gradient by one path", "share of all paths of that length"), horizontal_spacing=0.12
    )
    for found, colour in zip(looks, _COLOURS * len(looks), strict=False):
        if found.paths is None:
            continue
        for column, values in enumerate((found.paths.magnitude, found.paths.share), 1):
            figure.add_scatter(
                x=found.paths.lengths,
                y=values,
                name=found.name,
                legendgroup=found.name,
                showlegend=column == 1,
                line={"color": colour},
                row=1,
                col=column,
            )
    figure.update_layout(**_LAYOUT)
    figure.update_xaxes(title_text="branches on the path")
    figure.update_yaxes(type="log", exponentformat="power", col=1)
    return figure


def _responses(looks: Sequence[Look]) -> go.Figure:
    figure = go.Figure(layout=_LAYOUT)
    for found, colour in zip(looks, _COLOURS * len(looks), strict=False):
        figure.add_scatter(
            x=list(range(1, len(found.layers) + 1)),
            y=[layer.deviation for layer in found.layers],
            text=[layer.name for layer in found.layers],
            name=found.name,
            line={"color": colour},
            hovertemplate="%{text}: %{y:.3g}",
        )
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="standard deviation", rangemode="tozero")
    return figure


def _training(snapshots: Sequence[Glance]) -> go.Figure:
    names = [site.name for site in snapshots[0].sites]
    titles = ("|f(x)| / |x|", "gradient norm")
    figure = make_subplots(cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.14)
    for column, key in enumerate(("ratio", "gradient"), 1):
        rows = [[max(getattr(glance.sites[i], key), 1e-12) for glance in snapshots] for i in range(len(names))]
        figure.add_heatmap(
            x=[glance.epoch for glance in snapshots],
            y=list(range(1, len(names) + 1)),
            z=[[_log10(v) for v in row] for row in rows],
            customdata=[[[name, v] for v in row] for name, row in zip(names, rows, strict=True)],
            hovertemplate="%{customdata[0]}, epoch %{x:g}: %{customdata[1]:.3g}",
            colorscale="Viridis",
            reversescale=True,
            colorbar={"title": "log10", "x": 0.43 if column == 1 else 1.0, "len": 0.9},
            name="",
            row=1,
            col=column,
        )
    figure.update_layout(margin=_LAYOUT["margin"])
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text="site", col=1)
    return figure


def _log10(value: float) -> float:
    import math

    return math.log10(value)


def page(
    looks: Sequence[Look],
    *,
    data: str,
    footer: str = "",
    classes: Sequence[str] = (),
    pixels: Callable[[int], Any] | None = None,
    snapshots: Sequence[Glance] = (),
) -> Page:
    """Build the page. ``pixels``: the bytes of the sample's i-th image; ``snapshots``: from training the first network."""
    names = " and ".join(found.name for found in looks)
    built = Page(f"What the depth of {names} does", f"Measured on {data}.", footer)
    for found in looks:
        if len(looks) > 1:
            built.heading(found.name)
        built.said(summary(found))
        if found.sites:
            _chain(built, found)
    shown = [found for found in looks if found.sites]
    if any(site.lesion for found in shown for site in found.sites):
        built.heading("What the error becomes without each branch")
        built.figure(
            _lesions(shown),
            "Change of the error when one branch is left out and its shortcut stays, with 95 % intervals from paired answers "
            "on the same examples (Veit et al. 2016). Sites that change the signal's shape cannot be left out.",
        )
        if any(found.deletions for found in shown):
            built.figure(
                _several(shown),
                "Left: the error when more and more random branches are left out (bars: standard deviation over draws), and "
                "when random pairs of blocks change places. Right: points above the diagonal are pairs that stand in for each "
                "other.",
            )
    if shown:
        built.heading("How far from the identity")
        built.figure(
            _by_site(shown, "|f(x)| / |x|", lambda site: site.signal.ratio, log=True),
            "Size of what each branch adds, against the size of what its shortcut carries; mean over the examples.",
        )
        built.heading("How the gradient comes back")
        built.figure(
            _by_site(
                shown,
                "share by the shortcut, %",
                lambda site: 100 * g.shortcut / (g.shortcut + g.branch) if (g := site.gradient) and g.total else None,
            ),
            "The gradient at a site's input is the sum of what comes by the shortcut (the +1 of He et al. 2016) and of what "
            "comes through the branch. Shown is the first one's share of the two sizes.",
        )
        if any(found.paths for found in shown):
            built.figure(
                _paths(shown),
                "A network of n sites has 2^n paths. Left: mean size of the gradient that comes to the input by one path, by "
                "how many branches it passes. Right: that times the number of such paths (Veit et al. 2016, Fig. 6).",
            )
    built.heading("Layer responses")
    built.figure(
        _responses(looks),
        "Standard deviation of each layer's output, behind its batch norm and before the activation (He et al. 2015, Fig. 7).",
    )
    for found in shown:
        if found.probes is not None:
            _probes(built, found, classes, pixels)
    if snapshots:
        built.heading("While it trained")
        built.figure(_training(snapshots), "Each site by epoch: size of the branch against the shortcut, and gradient norm.")
    return built


def _probes(built: Page, found: Look, classes: Sequence[str], pixels: Callable[[int], Any] | None) -> None:
    assert found.probes is not None
    probes = found.probes
    built.heading(f"Where {found.name} spends its depth")
    built.figure(
        _by_site([found], "probe's error, %", lambda site: probes.error[site.index - 1]),
        "Error of a linear probe on the pooled output of each site (Alain and Bengio 2016).",
    )
    by_class = probes.by_class()
    named = [(classes[label] if label < len(classes) else str(label), site) for label, site in by_class.items()]
    if len(named) <= 40:
        rows = [[name, f"{site:.1f}"] for name, site in sorted(named, key=lambda pair: pair[1])]
        built.table("Mean of the earliest site at which a probe is right", ["class", "site"], rows)
    if pixels is None:
        return
    label = dict(zip(probes.examples, probes.labels, strict=True))
    settled = dict(zip(probes.examples, probes.settled, strict=True))
    for text, positions in zip(("Settled earliest:", "Settled latest, or never:"), probes.extremes(10), strict=True):
        built.text(text)
        built.gallery(
            [
                (
                    data_uri(pixels(i)),
                    f"{classes[label[i]] if label[i] < len(classes) else label[i]}, "
                    + (f"from site {settled[i]}" if settled[i] else "never"),
                )
                for i in positions
            ]
        )
