"""Claims about ImageNet networks (He et al. 2015, Tables 2 to 5), each tested by the protocol of the paper."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from deepres.evaluation.options import Protocol
from deepres.paper.experiment import Experiment, claim, clearly_less, curve, train_all
from deepres.paper.lab import Curves, Lab, Outcome, Row, Trained

# He et al. 2015: top-1 error by ten crops (Tables 2 and 3), and top-1 and top-5 at several scales (Table 4), %.
TEN_CROP = {"plain18": 27.94, "plain34": 28.54, "resnet18-a": 27.88, "resnet34-a": 25.03, "resnet34-b": 24.52,
            "resnet34-c": 24.19, "resnet50": 22.85, "resnet101": 21.75, "resnet152": 21.43}  # fmt: skip
SEVERAL = {"resnet34-b": (21.84, 5.71), "resnet34-c": (21.53, 5.60), "resnet50": (20.74, 5.25), "resnet101": (19.87, 4.60),
           "resnet152": (19.38, 4.49)}  # fmt: skip


def _tests(lab: Lab, net: str, protocol: Protocol, what: str = "top1") -> tuple[float, ...]:
    """Error by a protocol, for each seed."""
    return tuple(float(lab.tested([run], protocol)[what]) for run in train_all(lab, net))


def _deep(lab: Lab) -> list[str]:
    """Names of the networks of Table 4, shallow to deep."""
    return [f"resnet{lab.scale.depths[1]}-b", f"resnet{lab.scale.depths[1]}-c", *(f"resnet{d}" for d in lab.scale.table)]


@claim("imagenet-depth", "Degradation on photographs", "He et al. 2015, Table 2 and Fig. 4", 2.0, "imagenet")
def imagenet_depth_claim(lab: Lab, me: Experiment) -> Outcome:
    shallow, deep = lab.scale.depths
    nets = [f"plain{shallow}", f"plain{deep}", f"resnet{shallow}-a", f"resnet{deep}-a"]
    runs = {net: train_all(lab, net) for net in nets}
    train = {net: [run.train_error for run in found] for net, found in runs.items()}
    test = {net: _tests(lab, net, "ten-crop") for net in nets}
    rows = [Row(f"{net}, ten crops", test[net], paper=TEN_CROP.get(net)) for net in nets]
    rows += [Row(f"{net}, training error", tuple(train[net])) for net in nets]
    figure = Curves("Training error by epoch, mean over the seeds.", "epoch", "training error, %",
                    tuple(curve(net, found, "train_error") for net, found in runs.items()))  # fmt: skip
    worse, better = ([statistics.fmean(test[net]) for net in pair] for pair in (nets[:2], nets[2:]))
    return me.outcome(
        lab,
        "The deeper plain network is worse than the shallower one, in training too; the deeper residual network is better.",
        clearly_less(test[nets[0]], test[nets[1]])
        and clearly_less(train[nets[0]], train[nets[1]])
        and clearly_less(test[nets[3]], test[nets[2]]),
        f"From {shallow} to {deep} layers the error by ten crops goes from {worse[0]:.2f} to {worse[1]:.2f} % without shortcuts and "
        f"from {better[0]:.2f} to {better[1]:.2f} % with them.",
        rows,
        (figure,),
        likely="If only the part about residual networks fails, the data are too easy or the run is too short for depth to help.",
    )


@claim("imagenet-shortcuts", "Identity shortcuts are enough, and depth pays", "He et al. 2015, Table 3", 3.0, "imagenet")
def imagenet_shortcuts_claim(lab: Lab, me: Experiment) -> Outcome:
    deep = lab.scale.depths[1]
    nets = [f"plain{deep}", *(f"resnet{deep}-{option}" for option in "abc"), *(f"resnet{d}" for d in lab.scale.table)]
    top1 = {net: _tests(lab, net, "ten-crop") for net in nets}
    rows = [Row(f"{net}, top-1 by ten crops", top1[net], paper=TEN_CROP.get(net)) for net in nets]
    rows += [Row(f"{net}, top-5 by ten crops", _tests(lab, net, "ten-crop", "top5")) for net in nets]
    mean = {net: statistics.fmean(values) for net, values in top1.items()}
    options = [mean[net] for net in nets[1:4]]
    return me.outcome(
        lab,
        "All three shortcut options beat the plain network by more than they differ, and deeper bottleneck networks are better still.",
        max(options) - min(options) < mean[nets[0]] - max(options) and clearly_less(top1[nets[-1]], top1[nets[2]]),
        f"{nets[0]} has {mean[nets[0]]:.2f} %, options A, B and C {', '.join(f'{v:.2f}' for v in options)} %, and {nets[-1]} "
        f"{mean[nets[-1]]:.2f} %.",
        rows,
        likely="All residual networks are far better than a plain one that does not train; on few data, the smaller ones are better.",
    )


@claim("imagenet-single", "One network at several scales", "He et al. 2015, Table 4", 3.0, "imagenet")
def imagenet_single_claim(lab: Lab, me: Experiment) -> Outcome:
    nets = _deep(lab)
    several = {net: _tests(lab, net, "multiscale") for net in nets}
    crops = {net: _tests(lab, net, "ten-crop") for net in nets}
    rows = [Row(f"{net}, top-1 at several scales", several[net], paper=SEVERAL.get(net, (None,))[0]) for net in nets]
    rows += [
        Row(f"{net}, top-5 at several scales", _tests(lab, net, "multiscale", "top5"), paper=SEVERAL.get(net, (None, None))[1])
        for net in nets
    ]
    rows += [Row(f"{net}, top-1 by ten crops", crops[net], paper=TEN_CROP.get(net)) for net in nets]
    mean = {net: (statistics.fmean(several[net]), statistics.fmean(crops[net])) for net in nets}
    first, last = nets[0], nets[-1]
    return me.outcome(
        lab,
        "The deeper the network the lower its error, and whole images at several scales test better than ten crops.",
        clearly_less(several[last], several[first]) and all(a < b for a, b in mean.values()),
        f"At several scales {first} has {mean[first][0]:.2f} % and {last} {mean[last][0]:.2f} %; by ten crops {mean[first][1]:.2f} and "
        f"{mean[last][1]:.2f} %.",
        rows,
        likely="A network that was trained at one scale, without the paper's random scales, is accurate at that size only, above all "
        "where one object fills the image.",
    )


@claim("imagenet-ensemble", "Ensembles of networks of different depth", "He et al. 2015, Table 5", 3.0, "imagenet")
def imagenet_ensemble_claim(lab: Lab, me: Experiment) -> Outcome:
    by_net: list[Sequence[Trained]] = [train_all(lab, net) for net in _deep(lab)]
    one = [float(lab.tested([run], "multiscale")["top1"]) for runs in by_net for run in runs]
    together = [lab.tested([runs[i] for runs in by_net], "multiscale") for i in range(lab.scale.seeds)]
    top1 = tuple(float(found["top1"]) for found in together)
    best = min(statistics.fmean(one[i : i + lab.scale.seeds]) for i in range(0, len(one), lab.scale.seeds))
    return me.outcome(
        lab,
        "An ensemble of networks of different depth is better than the best of them.",
        statistics.fmean(top1) < best,
        f"{len(by_net)} networks together have {statistics.fmean(top1):.2f} % top-1 error at several scales, the best alone "
        f"{best:.2f} %.",
        [
            Row(f"{len(by_net)} networks, top-5 at several scales", tuple(float(f["top5"]) for f in together), paper=3.57),
            Row(f"{len(by_net)} networks, top-1 at several scales", top1),
        ],
    )
