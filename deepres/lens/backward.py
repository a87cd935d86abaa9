"""The backward pass: how much of the gradient comes by the +1 and how much through the branches (He et al. 2016, eq. 5)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import GradientSplit, Site, logits_of
from deepres.lens.sample import Sample, loss_of


@dataclass(frozen=True)
class Gradient:
    """The loss's gradient at one site's input. Sizes are norms of one example's gradient, means over the sample."""

    total: float
    shortcut: float  # what came by the shortcut: by the +1 where that is the identity
    branch: float  # what came through the branch
    cosine: float  # between the two


class _Sums:
    def __init__(self) -> None:
        self.values = torch.zeros(4, dtype=torch.float64)
        self.count = 0

    def add(self, flow: GradientSplit) -> None:
        parts = [part.detach().float().reshape(len(part), -1) for part in (flow.total, flow.shortcut, flow.branch)]
        sizes = [part.norm(dim=1) for part in parts]
        cosine = (parts[1] * parts[2]).sum(1) / (sizes[1] * sizes[2]).clamp(min=1e-30)
        self.values += torch.stack([*(size.sum() for size in sizes), cosine.sum()]).double().cpu()
        self.count += len(parts[0])


def gradients(model: nn.Module, sites: Sequence[Site], sample: Sample) -> list[Gradient | None]:
    """One forward and backward pass over the sample, batch by batch; weights get no gradients.

    The loss is the sum of the examples' cross-entropies, so each example's gradient is its own (batch norm in eval mode).
    None where a site's two ways cannot be told apart.
    """
    sums = [_Sums() for _ in sites]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for site, one in zip(sites, sums, strict=True):
            if site.splits_gradient:
                stack.enter_context(site.gradients(one.add))
        for x, y in sample.pairs():
            with _inputs_want_gradients(model, x) as inputs:
                logits = logits_of(model, inputs)
                _back(loss_of(logits, y) * len(x), inputs, model)
    return [
        Gradient(*(one.values / one.count).tolist()) if one.count else None  # nothing came through an unused site
        for one in sums
    ]


class _inputs_want_gradients:
    """Images carry the gradient to the first site by themselves; tokens have none, and the embedding's weights do it."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.x = x.detach().clone().requires_grad_() if x.is_floating_point() else x

    def __enter__(self) -> Tensor:
        return self.x

    def __exit__(self, *_: object) -> None:
        pass


def _back(loss: Tensor, inputs: Tensor, model: nn.Module, *, again: bool = False) -> Tensor:
    """A backward pass to the input alone, so that no weight's gradient is computed where that can be helped."""
    source = inputs if inputs.requires_grad else next(p for p in model.parameters() if p.requires_grad)
    return torch.autograd.grad(loss, source, retain_graph=again)[0]


@dataclass(frozen=True)
class Paths:
    """How long the paths are that the gradient takes (Veit et al. 2016, section 4.3).

    A network of n sites has 2^n paths from its output to its input, C(n, k) of them through k branches.
    """

    lengths: tuple[int, ...]  # the numbers of branches that were measured
    magnitude: tuple[float, ...]  # mean norm of the gradient that comes by one path of that length
    share: tuple[float, ...]  # of C(n, k) times that, normalised: how much paths of that length bring in all
    sites: int
    repeats: int

    @property
    def effective(self) -> tuple[int, int]:
        """The shortest span of lengths that brings 90 %."""
        return _span(self.lengths, self.share, 0.9)

    @property
    def mean(self) -> float:
        return sum(k * s for k, s in zip(self.lengths, self.share, strict=True))


def _span(lengths: Sequence[int], share: Sequence[float], least: float) -> tuple[int, int]:
    best = (lengths[0], lengths[-1])
    for i in range(len(share)):
        total = 0.0
        for j in range(i, len(share)):
            total += share[j]
            if total >= least:
                if lengths[j] - lengths[i] < best[1] - best[0]:
                    best = (lengths[i], lengths[j])
                break
    return best


def path_lengths(
    model: nn.Module, sites: Sequence[Site], sample: Sample, *, repeats: int = 4, most: int = 40, seed: int = 0
) -> Paths | None:
    """Sample paths of each length and measure the gradient that each brings to the input.

    In one backward pass, the sites of a random set let only their branch carry the gradient, all others only their
    shortcut. At most ``most`` lengths are measured, evenly spaced, ``repeats`` sets each. None where no site is left to choose.
    """
    chosen = [site for site in sites if site.splits_gradient]
    if len(chosen) < 2:
        return None
    n = len(chosen)
    lengths = sorted({round(i * n / min(most, n)) for i in range(min(most, n) + 1)})
    draw = random.Random(seed)
    through: set[int] = set()
    x, y = next(sample.pairs())
    sizes: dict[int, list[float]] = {k: [] for k in lengths}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for i, site in enumerate(chosen):
            stack.enter_context(site.gradients(through=lambda i=i: "branch" if i in through else "shortcut"))  # type: ignore[misc]
        with _inputs_want_gradients(model, x) as inputs:
            loss = loss_of(logits_of(model, inputs), y) * len(x)
            for k in lengths:
                for _ in range(1 if k in (0, n) else repeats):
                    through = set(draw.sample(range(n), k))
                    grad = _back(loss, inputs, model, again=True)
                    sizes[k].append(float(grad.reshape(len(grad), -1).norm(dim=1).mean()))
    magnitude = [sum(sizes[k]) / len(sizes[k]) for k in lengths]
    logs = [math.log(m) + _log_choose(n, k) if m > 0 else -math.inf for m, k in zip(magnitude, lengths, strict=True)]
    top = max(logs)
    weights = [math.exp(v - top) for v in logs] if top > -math.inf else [1.0] * len(logs)
    # a length that was left out counts with its neighbours
    widths = [(lengths[min(i + 1, len(lengths) - 1)] - lengths[max(i - 1, 0)]) / 2 for i in range(len(lengths))]
    total = sum(w * d for w, d in zip(weights, widths, strict=True))
    share = tuple(w * d / total for w, d in zip(weights, widths, strict=True))
    return Paths(tuple(lengths), tuple(magnitude), share, n, repeats)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
