"""Snapshots of every site during training: cheap enough for each epoch, kept with the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import GradientSplit, Observation, Site, flat, logits_of, sites
from deepres.callback import Callback
from deepres.data import Batch
from deepres.errors import DeepresError
from deepres.training import Trainer, local_norms
from deepres.training.norms import frozen_norm_statistics
from deepres.training.optimizer import last_step

SNAPSHOT_FILE = "lens.jsonl"
UNUSUAL = 1000.0  # factor from the median of all sites, beyond which a gradient is reported


@dataclass(frozen=True)
class SiteSnapshot:
    """One site at one moment of training, on a few examples, with the batch's statistics as training sees them."""

    name: str
    ratio: float  # |f(x)| / |shortcut(x)|
    dead: float | None  # share of channels that are zero for all of the examples; None without a ReLU
    gradient: float  # norm of the loss's gradient at the site's input
    by_shortcut: float  # share of the part through the shortcut in the norms of the two parts
    update: float | None  # |last step| / |weights| of the branch; None before the first step


@dataclass(frozen=True)
class Snapshot:
    """All sites at one step."""

    step: int
    epoch: float
    sites: tuple[SiteSnapshot, ...]

    def warnings(self) -> list[str]:
        """One sentence for each dead block and for each unusual gradient."""
        found = [
            f"{site.name}: every channel is zero for every example, so the block is dead"
            for site in self.sites
            if site.dead is not None and site.dead >= 1
        ]
        sizes = sorted(site.gradient for site in self.sites)
        middle = sizes[len(sizes) // 2]
        for site in self.sites:
            if site.gradient * UNUSUAL < middle or site.gradient > UNUSUAL * middle:
                factor = site.gradient / max(middle, 1e-30)
                found.append(f"{site.name}: its gradient is {factor:.1g} times the median of all sites")
        return found


def read_snapshots(folder: str | Path) -> list[Snapshot]:
    """The snapshots kept with a run, oldest first; an empty list where none were taken.

    A run that goes on from a checkpoint takes again the snapshots of the steps behind it; the last one of a step counts.
    """
    found: dict[int, Snapshot] = {}
    path = Path(folder) / SNAPSHOT_FILE
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                raw = json.loads(line)
                found[raw["step"]] = Snapshot(raw["step"], raw["epoch"], tuple(SiteSnapshot(**site) for site in raw["sites"]))
            except (ValueError, KeyError, TypeError):
                continue  # a crash can leave a line unfinished
    return [found[step] for step in sorted(found)]


def parse_every(text: str) -> tuple[float, str]:
    """``"1epoch"``, ``"every=0.5epochs"`` or ``"200steps"`` -> (1.0, "epoch").

    Raises ``DeepresError`` for anything else.
    """
    match = re.fullmatch(r"(?:every=)?(\d+(?:\.\d+)?)\s*(epoch|step)s?", text.strip())
    if match is None or float(match[1]) <= 0 or (match[2] == "step" and float(match[1]) < 1):
        raise DeepresError(f"--lens takes an interval, such as every=1epoch or every=200steps, not {text!r}")
    return float(match[1]), match[2]


@dataclass(eq=False)
class Monitor(Callback):
    """A callback that takes a snapshot of every site at intervals, in the main process.

    >>> deepres.train(run, callbacks=[Monitor(every="1epoch", out="runs/digits")])
    """

    every: str = "1epoch"
    out: str | Path | None = None  # the run's folder; the snapshots go into its lens.jsonl
    examples: int = 16
    say: Callable[[str], None] = print
    snapshots: list[Snapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count, self._unit = parse_every(self.every)
        self._warned: set[str] = set()

    def before_step(self, trainer: Trainer, batch: Batch) -> None:
        if trainer.context.is_main:
            images, steps = trainer.to_layout(batch.images), trainer.loader.steps
            with local_norms(trainer.model):  # the other processes make no forward pass here
                self.look(trainer.model, images, batch.labels, trainer.optimizer, trainer.progress.done, steps)

    def look(
        self, model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Before step ``step`` (counted from 0) of a run with ``steps`` steps an epoch."""
        gap = max(1, round(self._count * (steps if self._unit == "epoch" else 1)))
        if step % gap:
            return
        seen = take_snapshot(model, images[: self.examples], labels[: self.examples], optimizer, step, step / steps)
        if seen is None:
            return
        self.snapshots.append(seen)
        if self.out is not None:
            with open(Path(self.out) / SNAPSHOT_FILE, "a") as file:
                file.write(json.dumps(asdict(seen)) + "\n")
        for text in seen.warnings():
            if text.split(":")[0] not in self._warned:  # one warning a site
                self._warned.add(text.split(":")[0])
                self.say(f"lens, epoch {seen.epoch:.1f}: {text}")


def take_snapshot(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer | None, step: int, epoch: float
) -> Snapshot | None:
    """Take a snapshot of all sites in one forward and backward pass; None where the model has no sites.

    The model is left as it was: running statistics, gradients and random state included.
    """
    found = [site for site in sites(model) if site.splits_gradient]
    if not found:
        return None
    ratio: dict[str, Tensor] = {}
    dead: dict[str, Tensor] = {}
    back: dict[str, list[Tensor]] = {}

    def see(site: Site, seen: Observation) -> None:
        with torch.no_grad():
            n = len(seen.branch)
            sizes = [t.detach().float().reshape(n, -1).norm(dim=1) for t in (seen.branch, seen.shortcut)]
            ratio[site.name] = (sizes[0] / sizes[1].clamp(min=1e-12)).mean()
            if isinstance(site.activation, nn.ReLU):
                dead[site.name] = 1 - (seen.out.detach() > 0).transpose(0, 1).flatten(1).any(1).float().mean()

    def flow(site: Site, came: GradientSplit) -> None:
        back[site.name] = [t.detach().float().norm() for t in (came.total, came.shortcut, came.branch)]

    devices = [images.device] if images.is_cuda else []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(frozen_norm_statistics(model))
        for site in found:
            stack.enter_context(site.observe(partial(see, site)))
            stack.enter_context(site.gradients(partial(flow, site)))
        # tokens carry no gradient; a backward pass to all weights passes every site as well
        tokens = not images.is_floating_point()
        inputs = images.detach().clone().requires_grad_(not tokens)
        loss = F.cross_entropy(*flat(logits_of(model, inputs).float(), labels))
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad] if tokens else inputs, allow_unused=tokens)
    return Snapshot(
        step,
        epoch,
        tuple(
            SiteSnapshot(
                site.name,
                float(ratio[site.name]),
                float(dead[site.name]) if site.name in dead else None,
                float(back[site.name][0]),
                float(back[site.name][1] / (back[site.name][1] + back[site.name][2]).clamp(min=1e-30)),
                _update(site, optimizer) if optimizer is not None else None,
            )
            for site in found
        ),
    )


def _update(site: Site, optimizer: torch.optim.Optimizer) -> float | None:
    """Norm of the branch's last update divided by the norm of its weights."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    steps, sizes = [], []
    for parameter in (p for module in site.branch_modules for p in module.parameters()):
        step = last_step(optimizer, parameter, groups[id(parameter)])
        if step is None:
            return None
        steps.append(step.norm())
        sizes.append(parameter.detach().norm())
    return float(torch.stack(steps).norm() / torch.stack(sizes).norm().clamp(min=1e-12)) if sizes else None
