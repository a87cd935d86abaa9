"""The claims that CIFAR networks test: degradation, what it is not, shortcuts, the +1, depth and too much of it."""

from __future__ import annotations

import copy
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from deepres.adapters import GradientSplit, sites
from deepres.lens import gradient_norms
from deepres.lens.backward import gradients
from deepres.lens.responses import responses
from deepres.lens.sample import Sample
from deepres.nn import cost, deepen, parameters
from deepres.paper.experiment import MARGIN, Experiment, claim, clearly_less, curve, error_row, train_all, train_row
from deepres.paper.lab import Curves, Lab, Outcome, Row, over
from deepres.training import NonFinite

FLOOR = 1e-20  # below this a signal or gradient is nothing
VANISHED = 1e-3  # a layer's gradient or signal against the largest layer's; below it, it has vanished


@claim("degradation", "Deeper plain networks train worse", "He et al. 2015, Fig. 1, 4 and 6", 2.6, "cifar")
def degradation(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    runs = {f"{kind}-{d}": train_all(lab, f"{kind}{d}-cifar") for kind in ("plain", "resnet") for d in (shallow, deep)}
    mean = {name: statistics.fmean(run.train_error for run in found) for name, found in runs.items()}
    worse, better = mean[f"plain-{deep}"] - mean[f"plain-{shallow}"], mean[f"resnet-{deep}"] - mean[f"resnet-{shallow}"]
    figure = Curves("Training error by epoch, mean over the seeds.", "epoch", "training error, %",
                    tuple(curve(name, found, "train_error") for name, found in runs.items()))  # fmt: skip
    return me.outcome(
        lab,
        "A deeper plain network has a higher training error than a shallower one; a deeper residual network has not.",
        worse > MARGIN and better <= MARGIN,
        f"From {shallow} to {deep} layers the training error changes by {worse:+.2f} points without shortcuts and by {better:+.2f} "
        f"with them.",
        [train_row(f"{name}, training error", found) for name, found in runs.items()],
        (figure,),
        likely="In a run this short the deeper residual network, too, is still on its way.",
    )


@claim("overfitting", "Degradation is not overfitting", "He et al. 2015, section 1", 2.6, "cifar")
def overfitting(lab: Lab, me: Experiment) -> Outcome:
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
        "The deeper plain network is worse on the images it was trained on, not only on others: it underfits.",
        high_train > low_train + MARGIN and (high_test - high_train) <= max(low_test - low_train, MARGIN) + MARGIN,
        f"plain-{deep} has {high_train:.2f} % training and {high_test:.2f} % test error; plain-{shallow} has {low_train:.2f} % and "
        f"{low_test:.2f} %. Overfitting would be a low first and a high second figure.",
        rows,
        likely="Where neither network is near its best yet, little can be said of either.",
    )


@claim("gradients", "It is not vanishing gradients", "He et al. 2015, section 4.1", 1.0, "cifar")
def vanishing(lab: Lab, me: Experiment) -> Outcome:
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
                voices = (
                    [] if model is None else responses(_settled(model, images), Sample((images,), (labels,), "labels"))[:-1]
                )
                spread = [voice.deviation for voice in voices]
                signal.append(_evenness(spread))
                back.append(_evenness(grads))
                if seed == 0 and model is not None:
                    place = tuple(float(i + 1) for i in range(len(grads)))
                    forward.append((name, place, tuple(max(v, FLOOR) for v in spread)))
                    backward.append((name, place, tuple(max(v, FLOOR) for v in grads)))
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
        f"{VANISHED:g} counts as vanished; 0 stands for a network whose signal, or gradient, is nothing at all or not finite.",
        rows,
        (
            Curves("Deviation of each layer's response, first seed.", "layer", "deviation", tuple(forward), log=True),
            Curves("Gradient norm of each layer's weights, first seed.", "layer", "gradient norm", tuple(backward), log=True),
        ),
    )


def _after_an_epoch(lab: Lab, net: str, seed: int, *, norm: bool, init: str) -> nn.Module | None:
    """A network as it is after one gentle epoch; None where training it gave numbers that are not finite."""
    label = f"{'norm' if norm else 'bare'}-{init}"
    try:
        return lab.train(net, seed, label=label, changes={"epochs": 1.0, "lr": 0.01}, norm=norm, init=init).model
    except NonFinite:
        return None


def _evenness(sizes: list[float]) -> float:
    """The smallest against the largest; 0 where even the largest is nothing."""
    return min(sizes) / max(sizes) if sizes and max(sizes) > FLOOR else 0.0


def _settled(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """In eval mode with this batch's statistics, so that a measurement sees what training would."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@claim("constructed", "The constructed solution exists, and SGD does not find it", "He et al. 2015, section 1", 1.5, "cifar")
def constructed(lab: Lab, me: Experiment) -> Outcome:
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
        f"{over(rows['made'])} % training error; trained from scratch it ends at {over(rows['scratch'])} %.",
        [
            Row(f"plain-{shallow}, trained", tuple(rows["shallow"])),
            Row(f"plain-{deep}, made from it", tuple(rows["made"])),
            Row(f"plain-{deep}, from scratch", tuple(rows["scratch"])),
            Row("largest difference of outputs", tuple(rows["difference"]), "of the largest"),
        ],
    )


@claim("shortcuts", "Identity shortcuts are enough", "He et al. 2015, Table 3", 1.8, "cifar")
def shortcuts(lab: Lab, me: Experiment) -> Outcome:
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
        "Residual networks beat the plain one of equal size by far; the options differ little, so projections are not essential.",
        size["plain"] == size["A"]
        and min(options) < mean["plain"]
        and max(options) - min(options) < mean["plain"] - min(options),
        f"At {size['A']:,} weights each, plain has {mean['plain']:.2f} % test error and option A {mean['A']:.2f} %; the three options "
        f"lie within {max(options) - min(options):.2f} points.",
        rows,
        likely="At this depth, on data this easy, the plain network trains well too, so shortcuts of any kind have little to win.",
    )


@claim("bottleneck", "Bottlenecks at equal cost", "He et al. 2015, Fig. 5 and section 4.1", 1.6, "cifar")
def bottleneck(lab: Lab, me: Experiment) -> Outcome:
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


@claim("superhighway", "The +1 carries the gradient", "He et al. 2016, equations 4 and 5", 1.0, "cifar")
def superhighway(lab: Lab, me: Experiment) -> Outcome:
    net = f"resnet{lab.scale.depths[1]}-cifar-preact"
    images, labels = lab.batch(64)
    lines: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = []
    share, wrong = [], []
    for seed in lab.seeds:
        run = lab.train(net, seed)
        model = run.model.eval()
        found = sites(model)
        back = gradients(model, found, Sample((images,), (labels,), "labels"))
        parts = [(g.shortcut, g.branch) for g in back if g is not None]
        share.append(100 * statistics.fmean(a / (a + b) for a, b in parts if a + b))
        wrong.append(_finite_difference(model, images[:8], labels[:8]))
        if seed == 0:
            place = tuple(float(i + 1) for i in range(len(parts)))
            lines += [("by the shortcut, the +1", place, tuple(a for a, _ in parts))]
            lines += [("through the branch", place, tuple(b for _, b in parts))]
    reach = [min(line[2]) for line in lines[:1]]
    return me.outcome(
        lab,
        "The gradient at any block is what arrives at the last one, plus what the branches add: it cannot vanish by depth.",
        statistics.fmean(share) > 50 and max(wrong) < 0.02,
        f"On average {over(share)} % of the gradient's size comes by the shortcut at a site of the trained {net}; the weakest site still "
        f"gets {reach[0]:.2g} that way. Autograd's split agrees with a finite difference within {max(wrong):.1e}.",
        [Row("share by the shortcut", tuple(share)), Row("against a finite difference", tuple(wrong), "relative error")],
        (Curves("Gradient at each site's input by way, first seed.", "site", "mean norm", tuple(lines), log=True),),
    )


def _finite_difference(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Relative error of the split at one inner site, along the gradient itself, in float64."""
    model = copy.deepcopy(model).double().eval()
    images = images.double()
    site = [s for s in sites(model) if not s.reshapes][-2]
    splits_gradient: list[GradientSplit] = []
    signal: list[torch.Tensor] = []
    with site.gradients(splits_gradient.append), site.observe(lambda seen: signal.append(seen.x.detach())):
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    flow = splits_gradient[-1]
    worst = 0.0
    for way in ("shortcut", "branch"):
        direction = getattr(flow, way) / getattr(flow, way).norm()
        expected = float((getattr(flow, way) * direction).sum())
        off = []
        for size in (1e-5, 1e-6, 1e-7):  # a step over the corner of a ReLU has no slope; a smaller one misses the corner
            step = size * float(signal[-1].norm())
            losses = [_moved(model, site.block, images, labels, way, sign * step * direction) for sign in (1, -1)]
            off.append(abs((losses[0] - losses[1]) / (2 * step) - expected) / abs(expected))
        worst = max(worst, min(off))
    return worst


@torch.no_grad()
def _moved(
    model: nn.Module, block: nn.Module, images: torch.Tensor, labels: torch.Tensor, way: str, move: torch.Tensor
) -> float:
    """The loss with one of the two ways' input moved."""
    module = block.shortcut if way == "shortcut" else block.branch
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] + move, *args[1:]))  # type: ignore[union-attr]
    try:
        return float(F.cross_entropy(model(images), labels))
    finally:
        handle.remove()


@claim("responses", "Deeper residual networks respond less per layer", "He et al. 2015, Fig. 7", 2.6, "cifar")
def layer_responses(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    images, labels = lab.batch(256)
    sample = Sample((images,), (labels,), "labels")
    rows, lines, mean, seen = [], [], {}, {}
    for kind in ("plain", "resnet"):
        for d in (shallow, deep):
            values = []
            for run in train_all(lab, f"{kind}{d}-cifar"):
                found = [one.deviation for one in responses(run.model.eval(), sample)[1:-1]]
                values.append(statistics.fmean(found))
                if run.seed == 0:
                    lines.append((f"{kind}-{d}", tuple(100 * i / (len(found) - 1) for i in range(len(found))), tuple(found)))
            rows.append(Row(f"{kind}-{d}, mean deviation", tuple(values), ""))
            seen[kind, d], mean[kind, d] = values, statistics.fmean(values)
    return me.outcome(
        lab,
        "Residual networks' layer responses are smaller than plain ones', and smaller still in deeper ones.",
        clearly_less(seen["resnet", deep], seen["plain", deep]) and clearly_less(seen["resnet", deep], seen["resnet", shallow]),
        f"Mean deviation over the layers: plain-{shallow} {mean['plain', shallow]:.3f}, plain-{deep} {mean['plain', deep]:.3f}, "
        f"resnet-{shallow} {mean['resnet', shallow]:.3f}, resnet-{deep} {mean['resnet', deep]:.3f}. Batch norm's scale starts at 1 "
        "and needs training to move, so short runs show little of this.",
        rows,
        (Curves("Deviation of each layer's response, first seed.", "position in the network, %", "deviation", tuple(lines)),),
    )


@claim("table6", "Deeper residual networks are better", "He et al. 2015, Table 6", 9.0, "cifar")
def table6(lab: Lab, me: Experiment) -> Outcome:
    published: dict[int, float | str] = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: "6.43 (6.61 ± 0.16)", 1202: 7.93}
    rows, errors = [], {}
    for depth in lab.scale.table:
        runs = train_all(lab, f"resnet{depth}-cifar")
        errors[depth] = [run.test_error for run in runs]
        rows.append(error_row(f"resnet-{depth}, test error", runs, published.get(depth)))
    for depth in (d for d in lab.scale.table if d <= 110):
        rows.append(
            error_row(
                f"plain-{depth}, test error", train_all(lab, f"plain{depth}-cifar"), "above 60 %" if depth == 110 else None
            )
        )
    first, deepest = lab.scale.table[0], max(d for d in lab.scale.table if d <= 110)
    holds = clearly_less(errors[deepest], errors[first])
    if holds:
        reason = ""
    elif clearly_less(errors[first], errors[deepest]):
        reason = " So short a schedule ends before the deeper network has caught up."
    else:
        reason = " That is within what the seeds differ by: easy data and a short schedule leave depth little to give."
    before, after = (statistics.fmean(errors[depth]) for depth in (first, deepest))
    return me.outcome(
        lab,
        "Residual networks get better with depth, up to 110 layers.",
        holds,
        f"From {first} to {deepest} layers the test error goes from {before:.2f} to {after:.2f} %.{reason}",
        rows,
    )


@claim("overdepth", "Too much depth overfits, and can be answered", "He et al. 2015, Table 6; Huang et al. 2016", 9.0, "cifar")
def overdepth(lab: Lab, me: Experiment) -> Outcome:
    deep, deeper = lab.scale.deepest
    ways: dict[str, tuple[int, dict[str, float]]] = {
        f"resnet-{deep}": (deep, {}),
        f"resnet-{deeper}": (deeper, {}),
        f"resnet-{deeper}, dropout 0.5": (deeper, {"dropout": 0.5}),
        f"resnet-{deeper}, stochastic depth 0.5": (deeper, {"survival": 0.5}),
    }
    published: dict[tuple[int, str], float | str] = {
        (1202, ""): 7.93,
        (1202, "survival"): "4.91 (Huang et al.)",
        (110, ""): "6.43 (6.61 ± 0.16)",
    }
    rows, errors = [], {}
    for name, (depth, options) in ways.items():
        runs = train_all(lab, f"resnet{depth}-cifar", label="".join(options), **options)
        train, test = ([lab.error(run.model, split) for run in runs] for split in ("train", "test"))
        errors[name] = (train, test)
        rows += [
            Row(f"{name}, training error at the end", tuple(train)),
            Row(f"{name}, test error at the end", tuple(test), paper=published.get((depth, "".join(options)))),
        ]
    low = {name: statistics.fmean(left) for name, (left, _) in errors.items()}
    high = {name: statistics.fmean(right) for name, (_, right) in errors.items()}
    gap = {name: high[name] - low[name] for name in ways}
    shallow, bare, dropped, stochastic = ways
    answered = min(high[dropped], high[stochastic]) < high[bare]
    return me.outcome(
        lab,
        f"{deeper} layers train as well as {deep} and generalise worse; dropout or stochastic depth narrows the gap.",
        low[bare] <= low[shallow] + MARGIN and gap[bare] > gap[shallow] and answered,
        f"Gap between test and training error: {gap[shallow]:.2f} points at {deep} layers, {gap[bare]:.2f} at {deeper}, "
        f"{gap[dropped]:.2f} with dropout and {gap[stochastic]:.2f} with stochastic depth; test errors {high[shallow]:.2f}, "
        f"{high[bare]:.2f}, {high[dropped]:.2f} and {high[stochastic]:.2f} %.",
        rows,
        likely="In a short run the deeper network has not reached the shallower one's training error, so there is no overfitting to "
        "answer, and leaving features or blocks out costs steps that it does not have.",
    )


@claim("preactivation", "Pre-activation trains deep networks better", "He et al. 2016, Tables 2 and 3", 2.2, "cifar")
def preactivation(lab: Lab, me: Experiment) -> Outcome:
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
        + ("" if depth >= 110 else f" The paper compares at 110 layers and more; {depth} train well either way."),
        rows,
        (Curves("Training error by epoch, mean over the seeds.", "epoch", "training error, %", lines),),
    )
