"""Claims about the gradient of shortcuts and the responses of layers (He et al. 2015, section 4.2; 2016, equations 4 and 5)."""

from __future__ import annotations

import copy
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from deepres.adapters import GradientSplit, sites
from deepres.lens.gradient_split import gradients
from deepres.lens.layers import responses
from deepres.lens.sample import Sample
from deepres.paper.experiment import Experiment, claim, clearly_less, train_all
from deepres.paper.lab import Curves, Lab, Outcome, Row, over


@claim("superhighway", "Shortcuts carry the gradient", "He et al. 2016, equations 4 and 5", 1.0, "cifar")
def superhighway_claim(lab: Lab, me: Experiment) -> Outcome:
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
            lines += [("through the shortcut", place, tuple(a for a, _ in parts))]
            lines += [("through the branch", place, tuple(b for _, b in parts))]
    reach = [min(line[2]) for line in lines[:1]]
    return me.outcome(
        lab,
        "The gradient at any block is that of the last block plus the contributions of the branches, so it does not vanish with depth.",
        statistics.fmean(share) > 50 and max(wrong) < 0.02,
        f"On average {over(share)} % of the gradient's norm at a site of the trained {net} comes through the shortcut; at the weakest "
        f"site this part is {reach[0]:.2g}. The split by autograd agrees with a finite difference within {max(wrong):.1e}.",
        [
            Row("share through the shortcut", tuple(share)),
            Row("difference from a finite difference", tuple(wrong), "relative error"),
        ],
        (
            Curves(
                "Gradient at each site's input, through shortcut and branch, first seed.",
                "site",
                "mean norm",
                tuple(lines),
                log=True,
            ),
        ),
    )


def _finite_difference(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Relative error of the split at one inner site, along the gradient itself, in float64."""
    model = copy.deepcopy(model).double().eval()
    images = images.double()
    site = [s for s in sites(model) if not s.reshapes][-2]
    splits: list[GradientSplit] = []
    signal: list[torch.Tensor] = []
    with site.gradients(splits.append), site.observe(lambda seen: signal.append(seen.x.detach())):
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(inputs), labels), inputs)
    split = splits[-1]
    worst = 0.0
    for way in ("shortcut", "branch"):
        direction = getattr(split, way) / getattr(split, way).norm()
        expected = float((getattr(split, way) * direction).sum())
        off = []
        for size in (1e-5, 1e-6, 1e-7):  # a step across the kink of a ReLU is no derivative; a smaller one may avoid it
            step = size * float(signal[-1].norm())
            losses = [_loss_moved(model, site.block, images, labels, way, sign * step * direction) for sign in (1, -1)]
            off.append(abs((losses[0] - losses[1]) / (2 * step) - expected) / abs(expected))
        worst = max(worst, min(off))
    return worst


@torch.no_grad()
def _loss_moved(
    model: nn.Module, block: nn.Module, images: torch.Tensor, labels: torch.Tensor, way: str, move: torch.Tensor
) -> float:
    """Loss with ``move`` added to the input of the shortcut or of the branch."""
    module = block.shortcut if way == "shortcut" else block.branch
    handle = module.register_forward_pre_hook(lambda _, args: (args[0] + move, *args[1:]))  # type: ignore[union-attr]
    try:
        return float(F.cross_entropy(model(images), labels))
    finally:
        handle.remove()


@claim("responses", "Deeper residual networks respond less per layer", "He et al. 2015, Fig. 7", 2.6, "cifar")
def responses_claim(lab: Lab, me: Experiment) -> Outcome:
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
