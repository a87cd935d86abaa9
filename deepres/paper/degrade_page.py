"""The page that ``deepres degrade`` writes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from deepres.paper.degradation import Findings
from deepres.report import Page, Table, charts, mean_and_deviation

# plain networks in warm and residual networks in cool colours, the deepest in the stronger one
_COLOURS = {False: (charts.ORANGE, charts.RED), True: (charts.SKY, charts.BLUE)}


def degradation_table(findings: Findings) -> Table:
    """Errors, gradients and time of each network, one row each."""
    rows = [
        [
            net.removesuffix("-cifar"),
            mean_and_deviation(*findings.train_error(net)),
            mean_and_deviation(*findings.test_error(net)),
            f"{min(curve.weakest for curve in findings.of(net)):.2g}",
            f"{statistics.fmean(curve.history[-1].seconds for curve in findings.of(net)):.1f} s",
        ]
        for net in findings.nets
    ]
    return Table(
        "After the last epoch", ["network", "training error", "test error", "weakest / strongest gradient", "time"], rows
    )


def _style(findings: Findings, net: str) -> dict[str, Any]:
    curve = findings.of(net)[0]
    deepest = curve.depth == max(c.depth for c in findings.curves)
    return {"colour": _COLOURS[curve.residual][deepest], "width": 3 if deepest else 1.5}


def _errors(findings: Findings) -> go.Figure:
    """Error over the epochs as in Fig. 6 of the paper: training error dotted, test error solid; mean over the seeds."""

    def panel(title: str, residual: bool) -> charts.Panel:
        series = []
        for net in findings.nets:
            curves = findings.of(net)
            if curves[0].residual != residual:
                continue
            epochs = [record.epoch for record in curves[0].history]
            for which, dash in (("train", "dot"), ("test", "solid")):
                by_seed = [[getattr(record, f"{which}_error") for record in curve.history] for curve in curves]
                mean = [statistics.fmean(errors) for errors in zip(*by_seed, strict=True)]
                name = f"{net.removesuffix('-cifar')} {which}"
                series.append(
                    charts.Series(name, epochs, mean, dash=dash, hover="%{y:.2f} %", **_style(findings, net))  # type: ignore[arg-type]
                )
        return charts.Panel(charts.Axis("epoch"), charts.Axis("error, %", from_zero=True), series, title)

    return charts.lines(panel("plain", False), panel("residual", True), shared_y=True, unified=True)


def _gradients(findings: Findings) -> go.Figure:
    """Gradient norms of the first seed's convolutions, after the first and after the last epoch."""

    def panel(title: str, epoch: int) -> charts.Panel:
        series = []
        for net in findings.nets:
            _, layers = findings.of(net)[0].gradients[epoch]
            convs = layers[:-1]
            series.append(
                charts.Series(
                    net.removesuffix("-cifar"),
                    _positions(convs),
                    [layer.norm for layer in convs],
                    labels=[layer.name for layer in convs],
                    hover="%{text}: %{y:.2g}",
                    **_style(findings, net),
                )
            )
        return charts.Panel(charts.Axis("position, % of the depth"), charts.Axis("gradient norm", log=True), series, title)

    return charts.lines(panel("after the first epoch", 0), panel("after the last", -1), shared_y=True)


def _positions(layers: Sequence[object]) -> list[float]:
    return [100 * i / max(len(layers) - 1, 1) for i in range(len(layers))]


def degradation_page(findings: Findings, footer: str) -> Page:
    """Page about the findings."""
    built = Page(
        "The degradation problem",
        f"Plain and residual networks, trained with the same recipe on {findings.data} for {findings.epochs:g} epochs.",
        footer,
    )
    built.summary(findings.summary())
    built.table(degradation_table(findings))
    built.heading("Error while training")
    built.figure(
        _errors(findings),
        "Training error (dotted) and test error (solid) of each epoch, as in the paper's Fig. 6. "
        "Training error is measured during the epoch, test error after it. Mean over the seeds.",
    )
    built.heading("Gradient norms by layer")
    built.figure(
        _gradients(findings),
        "Norm of the loss's gradient with respect to each convolution's weights, on one batch of training images, from the "
        "input (left) to the output. A vanishing gradient falls by orders of magnitude towards the left. First seed.",
    )
    built.text(
        "A deeper plain network could copy a shallower one and set the other layers to the identity, so it need not train worse. "
        "Gradient descent does not find this solution. With h(x) = f(x) + x, the identity is easy to learn: f(x) = 0."
    )
    return built
