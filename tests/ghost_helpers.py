"""A small ghost with early exits, and its folder."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

import deepres
from deepres.data import Prepare, open_data
from deepres.exits import ExitHead
from deepres.exits.readout import pooled_by_quarter
from deepres.ghosting import Ghost, GhostResult, Settings, save_ghost
from deepres.ghosting.confirm import Verified
from deepres.ghosting.gates import Gate
from deepres.ghosting.points import Point
from deepres.models import annotate

CLASSES = ["digit-0", "digit-1", "digit-2"]
X = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ghost(average: bool, gates: bool = False) -> Ghost:
    """A ghost of 16x16 images whose exits answer at random, so that inputs leave at all of them; with ``gates``, one block is skipped
    for all inputs."""
    torch.manual_seed(0)
    net = deepres.create("resnet14-cifar", width=0.25, num_classes=3)
    net.train()(X)
    annotate(net, classes=CLASSES, prepare=deepres.data.Prepare.usual(16).to_notes())
    settings = Settings(exit_threshold=0.5, average=average, skip_threshold=0.0 if gates else None, fixed=gates)
    made = Ghost(net.eval(), settings, most=2)
    signals: list[Tensor] = []
    for module in made.ends:
        module.register_forward_hook(lambda _, args, out: signals.append(out))
    made.net(X)
    for module in made.ends:
        module._forward_hooks.clear()
    for c, signal in enumerate(signals[:-1]):
        head = ExitHead(pooled_by_quarter(signal).shape[1], 3)
        head.standardise(pooled_by_quarter(signal))
        head.weight.copy_(torch.randn(head.weight.shape) / head.weight.shape[1] ** 0.5)
        made.exits[c] = head.eval()
    if gates:
        gate = Gate(signals[1].shape[1], len(made.segments[2].skippable))  # behind the last exit
        gate.bias.fill_(-1.0)
        made.gates[2] = gate
    return made


def saved(made: Ghost, out: Path, faster: tuple[Settings, ...] = ()) -> Path:
    """The folder of a ghost as ``deepres ghost`` writes it. ``faster``: other settings that were measured, each faster than before."""
    points = [Point(one, 10.0 + k, 0.9 - 0.1 * k, 0.9 - 0.1 * k, 0.1) for k, one in enumerate((made.settings, *faster))]
    seen = Verified(1, 10.0, 10.0, 0, 0, 1.0, 1.0, 0.0, 0.0, {}, (), (), ())
    data = dataclasses.replace(open_data("digits"), prepare=Prepare.usual(16), classes=tuple(CLASSES))
    return save_ghost(GhostResult(made, points[0], tuple(points), 10.0, seen, {}, None, data), out)
