"""The gradient split: the parts of the gradient that come through the shortcuts and through the branches (He et al. 2016, eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import GradientSplit, Site, logits_of
from deepres.lens.sample import Sample, loss_of


@dataclass(frozen=True)
class Gradient:
    """Norms of the loss's gradient at one site's input, each of one example's gradient, averaged over the sample."""

    total: float
    shortcut: float  # of the part through the shortcut: the +1 where that is the identity
    branch: float  # of the part through the branch
    cosine: float  # between the two


class _SplitSums:
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
    None where a site's two parts cannot be separated, and where no gradient reaches the site.
    """
    sums = [_SplitSums() for _ in sites]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for site, one in zip(sites, sums, strict=True):
            if site.splits_gradient:
                stack.enter_context(site.gradients(one.add))
        for x, y in sample.pairs():
            inputs = leaf_inputs(x)
            back_to_input(loss_of(logits_of(model, inputs), y) * len(x), inputs, model)
    return [Gradient(*(one.values / one.count).tolist()) if one.count else None for one in sums]


@contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """Let frozen weights require gradients inside, so that a gradient can be had of each, and of tokens by their embedding."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def leaf_inputs(x: Tensor) -> Tensor:
    """``x`` as a leaf of the graph. Tokens cannot carry a gradient; there the embedding's weights start the graph."""
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def back_to_input(loss: Tensor, inputs: Tensor, model: nn.Module, *, again: bool = False) -> Tensor:
    """The gradient at the input, ``inputs``' shape. No weight's gradient is computed, except the first weights' for tokens."""
    source = inputs if inputs.requires_grad else next(p for p in model.parameters() if p.requires_grad)
    return torch.autograd.grad(loss, source, retain_graph=again)[0]
