"""The page that ``deepres degrade`` writes."""

from __future__ import annotations

import statistics
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepres.paper.degrade import Findings
from deepres.report import Page

# plain in warm, residual in cool colours; the deeper, the stronger. All readable on white and on near-black.
_COLOURS = {False: ("#f2a65a", "#d1495b"), True: ("#5aa9e6", "#2f6fde")}


def figure_text(mean: float, deviation: float) -> str:
    return f"{mean:.2f} ± {deviation:.2f} %" if deviation else f"{mean:.2f} %"


def rows(findings: Findings) -> list[list[str]]:
    """One row a network, as text: for the terminal and for the page."""
    return [
        [
            net.removesuffix("-cifar"),
            figure_text(*findings.train_error(net)),
            figure_text(*findings.test_error(net)),
            f"{min(curve.weakest for curve in findings.of(net)):.2g}",
            f"{statistics.fmean(curve.history[-1].seconds for curve in findings.of(net)):.1f} s",
        ]
        for net in findings.nets
    ]


HEAD = ["network", "training error", "test error", "weakest / strongest gradient", "time"]


def _style(findings: Findings, net: str) -> dict[str, Any]:
    curve = findings.of(net)[0]
    deepest = curve.depth == max(c.depth for c in findings.curves)
    return {"color": _COLOURS[curve.residual][deepest], "width": 3 if deepest else 1.5}


def _errors(findings: Findings) -> go.Figure:
    """Fig. 6 of the paper: training error dashed, test error solid."""
    figure = make_subplots(cols=2, subplot_titles=("plain", "residual"), shared_yaxes=True, horizontal_spacing=0.04)
    for net in findings.nets:
        curves = findings.of(net)
        column = 2 if curves[0].residual else 1
        epochs = [record.epoch for record in curves[0].history]
        for which, dash in (("train", "dot"), ("test", "solid")):
            values = [[getattr(record, f"{which}_error") for record in curve.history] for curve in curves]
            mean = [statistics.fmean(column_values) for column_values in zip(*values, strict=True)]
            figure.add_scatter(
                x=epochs,
                y=mean,
                name=f"{net.removesuffix('-cifar')} {which}",
                line={**_style(findings, net), "dash": dash},
                hovertemplate="%{y:.2f} %",
                row=1,
                col=column,
            )
    figure.update_layout(
        hovermode="x unified", margin={"t": 40, "l": 60, "r": 10, "b": 50}, legend={"orientation": "h", "y": -0.2}
    )
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(title_text="error, %", rangemode="tozero", col=1)
    return figure


def _gradients(findings: Findings) -> go.Figure:
    figure = make_subplots(
        cols=2, subplot_titles=("after the first epoch", "after the last"), shared_yaxes=True, horizontal_spacing=0.04
    )
    for net in findings.nets:
        curve = findings.of(net)[0]
        for column, (_, layers) in enumerate((curve.gradients[0], curve.gradients[-1]), 1):
            convs = layers[:-1]
            figure.add_scatter(
                x=[100 * i / (len(convs) - 1) for i in range(len(convs))],
                y=[layer.norm for layer in convs],
                text=[layer.name for layer in convs],
                name=net.removesuffix("-cifar"),
                legendgroup=net,
                showlegend=column == 1,
                line=_style(findings, net),
                hovertemplate="%{text}: %{y:.2g}",
                row=1,
                col=column,
            )
    figure.update_layout(margin={"t": 40, "l": 70, "r": 10, "b": 50}, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title_text="position in the network, % of its depth (0: at the input)")
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(title_text="gradient norm", col=1)
    return figure


def page(findings: Findings, footer: str) -> Page:
    built = Page(
        "The degradation problem",
        f"Plain and residual networks trained alike on {findings.data} for {findings.epochs:g} epochs.",
        footer,
    )
    built.said(findings.summary())
    built.table("After the last epoch", HEAD, rows(findings))
    built.heading("Error while training")
    built.figure(
        _errors(findings),
        "Training error (dotted) and test error (solid) by epoch; the counterpart of the paper's Fig. 6. "
        "Training error is measured during the epoch, test error after it. Mean over the seeds.",
    )
    built.heading("The gradient reaches every layer")
    built.figure(
        _gradients(findings),
        "Norm of the loss's gradient with respect to each convolution's weights, on one batch of training images, from the "
        "input (left) to the output. A vanished gradient would fall by orders of magnitude towards the left. First seed.",
    )
    built.text(
        "The claim: a deeper plain network could copy the shallower one and set the rest to the identity, so it should never "
        "train worse. Gradient descent does not find that solution. Learning h(x) = f(x) + x makes the identity the easy one."
    )
    return built
