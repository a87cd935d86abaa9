"""Path lengths: the gradient that paths through few and through many branches carry to the input."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from deepres.adapters import Site, logits_of
from deepres.lens.gradient_split import back_to_input, leaf_inputs
from deepres.lens.sample import Sample, loss_of


@dataclass(frozen=True)
class Paths:
    """Lengths of the paths that the gradient takes (Veit et al. 2016, section 4.3).

    A network of n sites has 2^n paths from its output to its input, C(n, k) of them through k branches.
    """

    lengths: tuple[int, ...]  # the numbers of branches that were measured
    magnitude: tuple[float, ...]  # mean norm of the gradient through one path of that length
    share: tuple[float, ...]  # of all paths of that length in the gradient: C(n, k) times the magnitude, normalised
    sites: int
    repeats: int

    @property
    def effective(self) -> tuple[int, int]:
        """The shortest range of lengths whose paths carry 90 % of the gradient."""
        return _span(self.lengths, self.share, 0.9)

    @property
    def mean(self) -> float:
        """Mean length, weighted by the share."""
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
    """Sample paths of each length and measure the gradient that each carries to the input.

    In one backward pass, the sites of a random set let only their branch carry the gradient, all others only their
    shortcut. At most ``most`` lengths are measured, evenly spaced, with ``repeats`` sets each. None with fewer than two sites.
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
        inputs = leaf_inputs(x)
        loss = loss_of(logits_of(model, inputs), y) * len(x)
        for k in lengths:
            for _ in range(1 if k in (0, n) else repeats):
                through = set(draw.sample(range(n), k))
                grad = back_to_input(loss, inputs, model, again=True)
                sizes[k].append(float(grad.reshape(len(grad), -1).norm(dim=1).mean()))
    magnitude = [sum(sizes[k]) / len(sizes[k]) for k in lengths]
    logs = [math.log(m) + _log_choose(n, k) if m > 0 else -math.inf for m, k in zip(magnitude, lengths, strict=True)]
    top = max(logs)
    weights = [math.exp(v - top) for v in logs] if top > -math.inf else [1.0] * len(logs)
    # a length that was not measured is represented by its neighbours
    widths = [(lengths[min(i + 1, len(lengths) - 1)] - lengths[max(i - 1, 0)]) / 2 for i in range(len(lengths))]
    total = sum(w * d for w, d in zip(weights, widths, strict=True))
    share = tuple(w * d / total for w, d in zip(weights, widths, strict=True))
    return Paths(tuple(lengths), tuple(magnitude), share, n, repeats)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
