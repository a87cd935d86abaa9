"""The forward signal: its size at each site, and the site's distance from the identity.

Statistics are summed during the forward pass and no activation is kept, so the memory does not grow with the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deepres.adapters import Observation, Site, logits_of, spec_of
from deepres.adapters.spec import Layout
from deepres.lens.sample import Sample

EDGES = tuple(10 ** (-3 + 0.2 * i) for i in range(26))  # of the histogram of |f(x)| / |x|, 0.001 to 100


@dataclass(frozen=True)
class Signal:
    """The forward signal at one site, over a sample. Sizes are Euclidean norms of one example's tensor."""

    mean: float  # of the output's values
    variance: float
    inactive: float | None  # share of the output's values that the ReLU made zero; None without a ReLU
    dead: float | None  # share of channels that are zero for the whole sample
    ratio: float  # |f(x)| / |shortcut(x)|, mean over examples
    spread: tuple[float, float]  # its 10th and 90th percentile
    cosine: float | None  # between input and output, mean; None where the shape changes
    histogram: tuple[int, ...]  # examples by ratio, between EDGES; the outermost also count what lies beyond


def channel_axis(out: Tensor, layout: Layout) -> int:
    """The axis of the channels in a signal: 1 of (N, C, H, W) and of (N, C), the last of (N, H, W, C) and (N, L, C)."""
    return 1 if out.ndim == 2 or (out.ndim == 4 and layout != "NHWC") else out.ndim - 1


@dataclass
class SignalSums:
    """Sums over the sample, from which a ``Signal`` is computed."""

    rectified: bool
    layout: Layout
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    alive: Tensor | None = None
    ratios: list[Tensor] = field(default_factory=list)  # one number an example
    cosine: float = 0.0
    compared: int = 0

    def add(self, seen: Observation) -> None:
        out = seen.out.detach().float()
        n = len(out)
        # sums of squares lose digits where the mean is large; float64 has enough of them
        self.count += out.numel()
        self.total += float(out.sum(dtype=torch.float64))
        self.squares += float(out.square().sum(dtype=torch.float64))
        if self.rectified:
            positive = out > 0
            self.zeros += out.numel() - int(positive.sum())
            alive = positive.movedim(channel_axis(out, self.layout), 0).flatten(1).any(1)
            self.alive = alive if self.alive is None else self.alive | alive
        flat = [t.detach().float().reshape(n, -1) for t in (seen.branch, seen.shortcut, seen.out, seen.x)]
        sizes = [t.norm(dim=1) for t in flat]
        self.ratios.append((sizes[0] / sizes[1].clamp(min=1e-12)).cpu())
        if flat[2].shape == flat[3].shape:
            self.cosine += float(((flat[2] * flat[3]).sum(1) / (sizes[2] * sizes[3]).clamp(min=1e-12)).sum())
            self.compared += n

    def result(self) -> Signal:
        ratios = torch.cat(self.ratios)
        mean = self.total / self.count
        low, high = torch.quantile(ratios.double(), torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        bins = torch.bucketize(ratios, torch.tensor(EDGES[1:-1]))
        return Signal(
            mean=mean,
            variance=max(self.squares / self.count - mean**2, 0.0),
            inactive=self.zeros / self.count if self.rectified else None,
            dead=1 - float(self.alive.float().mean()) if self.alive is not None else None,
            ratio=float(ratios.mean()),
            spread=(low, high),
            cosine=self.cosine / self.compared if self.compared else None,
            histogram=tuple(torch.bincount(bins, minlength=len(EDGES) - 1).tolist()),
        )


@torch.no_grad()
def signals(model: nn.Module, sites: Sequence[Site], sample: Sample) -> list[Signal]:
    """The signal at each site, from one pass over the sample, in the model's current mode (training or eval)."""
    layout = spec_of(model).layout
    sums = [SignalSums(isinstance(site.activation, nn.ReLU), layout) for site in sites]
    with ExitStack() as stack:
        for site, one in zip(sites, sums, strict=True):
            stack.enter_context(site.observe(one.add))
        for x in sample.inputs:
            logits_of(model, x)
    return [one.result() for one in sums]
