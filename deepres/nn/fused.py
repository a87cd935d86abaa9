"""Residual networks whose norms, sums and activations run as one operation each while training (see ``kernels.norm_act``)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from deepres.kernels import norm_act
from deepres.nn.residual import Residual


class FusedNorm(nn.BatchNorm2d):
    """Batch norm that adds a shortcut and applies the ReLU behind it in the same pass. In eval mode it runs PyTorch's operations."""

    relu: bool = False

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not (self.training and self.affine):
            y = super().forward(x)
            y = y if shortcut is None else y + shortcut
            return y.relu() if self.relu else y
        if x.numel() == x.shape[1]:
            raise ValueError(f"batch norm needs more than one value per channel, and the input is {tuple(x.shape)}")
        y, mean, variance = norm_act(x, self.weight, self.bias, shortcut, eps=self.eps, relu=self.relu)
        if self.track_running_stats:
            self._track(mean, variance, x.numel() // x.shape[1])
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # Without a momentum all batches count alike.
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), share)


class FusedReLU(nn.ReLU):
    """A ReLU that the norm in front of it has applied already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FusedResidual(Residual):
    """A block whose branch ends in a ``FusedNorm``, which adds the shortcut and applies ``after``."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.branch, nn.Sequential)
        layers, norm = list(self.branch)[:-1], self.branch[-1]
        assert isinstance(norm, FusedNorm)
        if any(_watched(module) for module in (self.branch, norm, self.shortcut, self.after)):
            return self.after(self.shortcut(x) + self.branch(x)).relu()  # hooks see what they see elsewhere
        h = x
        for layer in layers:
            h = layer(h)
        norm.relu = True
        try:
            return norm(h, self.shortcut(x))
        finally:
            norm.relu = False


def _watched(module: nn.Module) -> bool:
    """Whether calls of ``module`` are observed or replaced."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def accelerate(model: nn.Module) -> nn.Module:
    """Exchange norms, sums and ReLUs of ``model`` for fused ones, in place, and return it. ``restore`` undoes it.

    Fused are a batch norm that is followed by a ReLU in a sequence, and a ``Residual`` whose branch ends in a batch norm and which
    ends in a ReLU. Weights, running statistics, ``state_dict`` keys and results stay, up to rounding; one pass over an activation
    takes the place of three or four. It pays in training, in channels-last memory; see ``kernels.status``.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for norm, act in pairwise(module):
                if type(norm) is nn.BatchNorm2d and type(act) is nn.ReLU:
                    norm.__class__, act.__class__ = FusedNorm, FusedReLU
                    norm.relu = True  # type: ignore[assignment]
        if type(module) is Residual and type(module.after) is nn.ReLU and _plain_sequence(module.branch):
            last = module.branch[-1]  # type: ignore[index]
            if type(last) is nn.BatchNorm2d:
                last.__class__, module.after.__class__, module.__class__ = FusedNorm, FusedReLU, FusedResidual
    return model


def _plain_sequence(branch: nn.Module) -> bool:
    """Whether the branch runs its layers one after the other, always: stochastic depth leaves it out at times."""
    return isinstance(branch, nn.Sequential) and getattr(branch, "survival", 1.0) == 1


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate``, in place."""
    ordinary = {FusedNorm: nn.BatchNorm2d, FusedReLU: nn.ReLU, FusedResidual: Residual}
    for module in model.modules():
        if type(module) in ordinary:
            module.__class__ = ordinary[type(module)]
            module.__dict__.pop("relu", None)
    return model
