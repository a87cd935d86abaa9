"""Shortcut options, bottlenecks and pre-activation (He et al. 2015, section 3.3; 2016, section 3)."""

from __future__ import annotations

import statistics

from deepres.nn import cost, parameters
from deepres.paper.experiment import MARGIN, Experiment, claim, clearly_less, curve, error_row, train_all
from deepres.paper.lab import Curves, Lab, Outcome, Row


@claim("shortcuts", "Identity shortcuts are enough", "He et al. 2015, Table 3", 1.8, "cifar")
def shortcuts_claim(lab: Lab, me: Experiment) -> Outcome:
    depth = lab.scale.depths[0]
    paper = {"plain": 28.54, "A": 25.03, "B": 24.52, "C": 24.19}
    runs = {"plain": train_all(lab, f"plain{depth}-cifar"), "A": train_all(lab, f"resnet{depth}-cifar")}
    runs |= {option: train_all(lab, f"resnet{depth}-cifar-{option.lower()}") for option in "BC"}
    size = {key: parameters(found[0].model) for key, found in runs.items()}
    mean = {key: statistics.fmean(run.test_error for run in found) for key, found in runs.items()}
    options = [mean[key] for key in "ABC"]
    rows = [
        error_row(f"{'plain' if key == 'plain' else f'residual, option {key}'} ({size[key]:,} weights)", found,
                  f"{paper[key]} (34 layers, ImageNet)")
        for key, found in runs.items()
    ]  # fmt: skip
    return me.outcome(
        lab,
        "Residual networks are far better than the plain one of equal size; the options differ little, so projections are not essential.",
        size["plain"] == size["A"]
        and min(options) < mean["plain"]
        and max(options) - min(options) < mean["plain"] - min(options),
        f"At {size['A']:,} weights each, plain has {mean['plain']:.2f} % test error and option A {mean['A']:.2f} %; the three options "
        f"lie within {max(options) - min(options):.2f} points.",
        rows,
        likely="At this depth and on such easy data the plain network trains well too, so shortcuts can improve little.",
    )


@claim("bottleneck", "Bottlenecks at equal cost", "He et al. 2015, Fig. 5 and section 4.1", 1.6, "cifar")
def bottleneck_claim(lab: Lab, me: Experiment) -> Outcome:
    basic, slim = f"resnet{lab.scale.depths[0]}-cifar", "resnet29-cifar-bottleneck"
    runs = {net: train_all(lab, net) for net in (basic, slim)}
    shape = lab.data.shape
    macs = {net: cost(found[0].model, shape).macs for net, found in runs.items()}
    mean = {net: statistics.fmean(run.test_error for run in found) for net, found in runs.items()}
    return me.outcome(
        lab,
        "A deeper bottleneck network of about the same multiply-adds is as good or better.",
        mean[slim] <= mean[basic] + MARGIN,
        f"{slim} has {mean[slim]:.2f} % test error with {macs[slim] / 1e6:.1f} M multiply-adds, {basic} {mean[basic]:.2f} % with "
        f"{macs[basic] / 1e6:.1f} M.",
        [error_row(f"{net} ({macs[net] / 1e6:.1f} M multiply-adds)", found) for net, found in runs.items()],
        likely="A bottleneck's inner layers have few channels in networks of this width, and a short run favours the shallower network.",
    )


@claim("preactivation", "Pre-activation trains deep networks better", "He et al. 2016, Tables 2 and 3", 2.2, "cifar")
def preactivation_claim(lab: Lab, me: Experiment) -> Outcome:
    depth = max(lab.scale.depths[1], 110 if lab.scale.name != "quick" else 0)
    runs = {key: train_all(lab, f"resnet{depth}-cifar{key}") for key in ("", "-preact")}
    paper = {"": 6.61, "-preact": 6.37}
    loss = {key: statistics.fmean(run.history[-1].loss for run in found) for key, found in runs.items()}
    name = {"": f"resnet-{depth}, post-activation", "-preact": f"resnet-{depth}, pre-activation"}
    rows = [error_row(f"{name[k]}, test error", found, paper[k] if depth == 110 else None) for k, found in runs.items()]
    rows += [Row(f"{name[k]}, training loss", tuple(r.history[-1].loss for r in found), "nats") for k, found in runs.items()]
    lines = tuple(curve(name[k], found, "train_error") for k, found in runs.items())
    return me.outcome(
        lab,
        "With norm and ReLU before the convolutions, the same network reaches a lower training loss.",
        clearly_less(*([run.history[-1].loss for run in runs[key]] for key in ("-preact", ""))),
        f"Training loss at the end: {loss['']:.4f} post-activation, {loss['-preact']:.4f} pre-activation."
        + ("" if depth >= 110 else f" The paper compares at 110 layers and more; {depth} layers train well in both forms."),
        rows,
        (Curves("Training error by epoch, mean over the seeds.", "epoch", "training error, %", lines),),
    )
