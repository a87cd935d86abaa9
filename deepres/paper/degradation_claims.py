"""The degradation problem, which is not overfitting, vanishing gradients or a lack of solutions (He et al. 2015, section 1)."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from deepres.lens import gradient_norms
from deepres.lens.layers import responses
from deepres.lens.sample import Sample
from deepres.nn import deepen
from deepres.paper.experiment import MARGIN, VANISHED, ZERO, Experiment, claim, curve, evenness, train_all, train_row
from deepres.paper.lab import Curves, Lab, Outcome, Row, over
from deepres.training import NonFinite


@claim("degradation", "Deeper plain networks train worse", "He et al. 2015, Fig. 1, 4 and 6", 2.6, "cifar")
def degradation_claim(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    runs = {f"{kind}-{d}": train_all(lab, f"{kind}{d}-cifar") for kind in ("plain", "resnet") for d in (shallow, deep)}
    mean = {name: statistics.fmean(run.train_error for run in found) for name, found in runs.items()}
    worse, better = mean[f"plain-{deep}"] - mean[f"plain-{shallow}"], mean[f"resnet-{deep}"] - mean[f"resnet-{shallow}"]
    figure = Curves("Training error by epoch, mean over the seeds.", "epoch", "training error, %",
                    tuple(curve(name, found, "train_error") for name, found in runs.items()))  # fmt: skip
    return me.outcome(
        lab,
        "A deeper plain network has a higher training error than a shallower one; a deeper residual network does not.",
        worse > MARGIN and better <= MARGIN,
        f"From {shallow} to {deep} layers the training error changes by {worse:+.2f} points without shortcuts and by {better:+.2f} "
        f"with them.",
        [train_row(f"{name}, training error", found) for name, found in runs.items()],
        (figure,),
        likely="In so short a run the deeper residual network has not converged either.",
    )


@claim("overfitting", "Degradation is not overfitting", "He et al. 2015, section 1", 2.6, "cifar")
def overfitting_claim(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    rows, gaps = [], {}
    for d in (shallow, deep):
        runs = train_all(lab, f"plain{d}-cifar")
        train, test = ([lab.error(run.model, split) for run in runs] for split in ("train", "test"))
        rows += [
            Row(f"plain-{d}, training error at the end", tuple(train)),
            Row(f"plain-{d}, test error at the end", tuple(test)),
        ]
        gaps[d] = (statistics.fmean(train), statistics.fmean(test))
    (low_train, low_test), (high_train, high_test) = gaps[shallow], gaps[deep]
    return me.outcome(
        lab,
        "The deeper plain network is worse on the training images too: it underfits.",
        high_train > low_train + MARGIN and (high_test - high_train) <= max(low_test - low_train, MARGIN) + MARGIN,
        f"plain-{deep} has {high_train:.2f} % training and {high_test:.2f} % test error; plain-{shallow} has {low_train:.2f} % and "
        f"{low_test:.2f} %. Overfitting would mean a low training error and a high test error.",
        rows,
        likely="Neither network has converged, so the comparison says little.",
    )


@claim("gradients", "It is not vanishing gradients", "He et al. 2015, section 4.1", 1.0, "cifar")
def vanishing_claim(lab: Lab, me: Experiment) -> Outcome:
    depth = lab.scale.depths[1]
    images, labels = lab.batch()
    rows, forward, backward, weakest = [], [], [], {}
    for norm in (True, False):
        for init in ("he", "gaussian"):
            name = f"{'batch norm' if norm else 'no norm'}, {'He' if init == 'he' else 'fixed 0.01'} init"
            signal, back = [], []
            for seed in lab.seeds:
                model = _after_an_epoch(lab, f"plain{depth}-cifar", seed, norm=norm, init=init)
                grads = [layer.norm for layer in gradient_norms(model, images, labels)[:-1]] if model is not None else []
                layers = (
                    []
                    if model is None
                    else responses(_with_batch_statistics(model, images), Sample((images,), (labels,), "labels"))[:-1]
                )
                spread = [layer.deviation for layer in layers]
                signal.append(evenness(spread))
                back.append(evenness(grads))
                if seed == 0 and model is not None:
                    place = tuple(float(i + 1) for i in range(len(grads)))
                    forward.append((name, place, tuple(max(v, ZERO) for v in spread)))
                    backward.append((name, place, tuple(max(v, ZERO) for v in grads)))
            rows.append(Row(f"{name}: weakest / strongest signal", tuple(signal), ""))
            rows.append(Row(f"{name}: weakest / strongest gradient", tuple(back), ""))
            weakest[norm, init] = (min(signal), min(back))
    healthy = min(weakest[True, "he"]) > VANISHED
    lost = min(weakest[False, "gaussian"]) < VANISHED
    with_both, with_neither = weakest[True, "he"], weakest[False, "gaussian"]
    return me.outcome(
        lab,
        "With batch norm and He initialisation the plain network's signals and gradients are healthy in every layer; without "
        "both they vanish or explode.",
        healthy and lost,
        f"plain-{depth} after one epoch at a low rate, by layer: with both, the weakest signal is {with_both[0]:.2g} and the weakest "
        f"gradient {with_both[1]:.2g} of the strongest; with neither, {with_neither[0]:.2g} and {with_neither[1]:.2g}. Below "
        f"{VANISHED:g} counts as vanished; 0 stands for a signal or gradient that is zero or not finite.",
        rows,
        (
            Curves("Deviation of each layer's response, first seed.", "layer", "deviation", tuple(forward), log=True),
            Curves("Gradient norm of each layer's weights, first seed.", "layer", "gradient norm", tuple(backward), log=True),
        ),
    )


def _after_an_epoch(lab: Lab, net: str, seed: int, *, norm: bool, init: str) -> nn.Module | None:
    """Train a network for one epoch at a low rate; None if the loss was not finite."""
    label = f"{'norm' if norm else 'bare'}-{init}"
    try:
        return lab.train(net, seed, label=label, changes={"epochs": 1.0, "lr": 0.01}, norm=norm, init=init).model
    except NonFinite:
        return None


def _with_batch_statistics(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Put the statistics of this batch into the batch norms of ``model``, so that it computes in eval mode what it does in training."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@claim("constructed", "The constructed solution exists, and SGD does not find it", "He et al. 2015, section 1", 1.5, "cifar")
def constructed_claim(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    images, _ = lab.batch(256)
    blocks = lab.build(f"plain{deep}-cifar").config.blocks
    rows: dict[str, list[float]] = {"difference": [], "shallow": [], "made": [], "scratch": []}
    for seed in lab.seeds:
        base = lab.train(f"plain{shallow}-cifar", seed)
        made = deepen(base.model, blocks, images).eval()
        with torch.no_grad():
            expected = base.model.eval()(images)
            rows["difference"].append(float((made(images) - expected).abs().max() / expected.abs().max()))
        rows["shallow"].append(lab.error(base.model))
        rows["made"].append(lab.error(made))
        rows["scratch"].append(lab.error(lab.train(f"plain{deep}-cifar", seed).model))
    gap = statistics.fmean(rows["scratch"]) - statistics.fmean(rows["made"])
    return me.outcome(
        lab,
        "A deeper plain network that copies a shallower one and adds identities has its training error; gradient descent from "
        "scratch does not reach it.",
        max(rows["difference"]) < 1e-4 and gap > MARGIN,
        f"plain-{deep} made from plain-{shallow} gives the same outputs to {max(rows['difference']):.1e} of the largest, so "
        f"{over(rows['made'])} % training error; trained from scratch it has {over(rows['scratch'])} %.",
        [
            Row(f"plain-{shallow}, trained", tuple(rows["shallow"])),
            Row(f"plain-{deep}, made from it", tuple(rows["made"])),
            Row(f"plain-{deep}, from scratch", tuple(rows["scratch"])),
            Row("largest difference of outputs", tuple(rows["difference"]), "of the largest"),
        ],
    )
