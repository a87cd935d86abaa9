"""Batch norms that add a shortcut and activate in the same pass over memory while training (see ``kernels.norm_act``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepres.kernels import norm_act

ONE_VALUE = "Expected more than 1 value per channel"  # how PyTorch's batch norm begins its refusal


class FusedNorm(nn.BatchNorm2d):
    """Batch norm with a residual sum and a ReLU behind it, as one operation in training; in eval mode PyTorch's operations."""

    relu: bool = False  # whether a ReLU follows in every call
    synchronised: bool = False  # whether the batch is that of all processes

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """``relu(norm(x) + shortcut)``: (N, C, H, W) -> (N, C, H, W).

        Raises ``ValueError`` in training where there is one value per channel.
        """
        relu = relu or self.relu
        if not (self.training and self.affine):
            y = super().forward(x)
            y = y if shortcut is None else y + shortcut
            return y.relu() if relu else y
        y, mean, variance, count = norm_act(
            x, self.weight, self.bias, shortcut, eps=self.eps, relu=relu, synchronised=self.synchronised
        )
        if count < 2 if self.synchronised else x.numel() == x.shape[1]:
            raise ValueError(f"{ONE_VALUE} when training, got input size {tuple(x.shape)}")
        track_statistics(self, mean, variance, count)
        return y


@torch.no_grad()
def track_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Move the running statistics of ``norm``, if it has any, towards those of a batch with ``count`` values per channel.

    ``mean``, ``variance``: (C,), of the batch; the variance is divided by ``count``.
    """
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # Without a momentum all batches count alike.
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked or 1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), share)


class FusedReLU(nn.ReLU):
    """A ReLU that the norm in front of it has applied already."""

    def forward(self, x: Tensor) -> Tensor:
        return x
