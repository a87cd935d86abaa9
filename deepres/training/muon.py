"""Muon for the convolutions of residual branches, SGD for all other parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.6  # of convolutions; short, as a run of few steps needs it
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: singular values come to between 0.7 and 1.2 in five iterations


class MuonAndSGD(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for ``convolutions``, SGD with Nesterov momentum for the parameters in ``groups``, as one optimizer.

    A convolution's weight is taken as a matrix of one row for each output channel. Its step is the orthogonalised Nesterov momentum, and
    before each step the weight is scaled to the norm of a matrix of unit rows. The learning rate is therefore the relative change of a
    convolution in one step. Norms behind convolutions make the scale of their weights irrelevant, and take the place of weight decay.
    """

    def __init__(self, convolutions: list[nn.Parameter], groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        self.sgd = torch.optim.SGD(groups, lr, momentum, nesterov=True, fused=True)
        own = {"params": convolutions, "lr": lr, "ns_steps": _ITERATIONS}
        super().__init__([own, *self.sgd.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let SGD work on this optimizer's groups and state, so that whoever reads or loads these sees everything."""
        self.sgd.param_groups, self.sgd.state = self.param_groups[1:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. A ``closure`` is not supported."""
        assert closure is None
        group = self.param_groups[0]
        alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(
            list
        )  # convolutions of one shape are orthogonalised together
        for weight in group["params"]:
            if weight.grad is not None:
                alike[weight.shape].append(weight)
        for shape, weights in alike.items():
            directions = torch.stack([self._nesterov(weight).flatten(1) for weight in weights])
            for weight, step in zip(weights, orthogonalised(directions), strict=True):
                weight.mul_(shape[0] ** 0.5 / weight.norm().clamp_min(1e-12))
                weight.add_(step.view(shape), alpha=-group["lr"])
        self.sgd.step()

    def _nesterov(self, weight: Tensor) -> Tensor:
        assert weight.grad is not None
        momentum: Tensor = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        momentum.mul_(MOMENTUM).add_(weight.grad)
        return weight.grad + MOMENTUM * momentum


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, R, C) -> (N, R, C): the nearest semi-orthogonal matrices, roughly, by Newton and Schulz's iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return x.mT if tall else x
