"""Fused operations for training residual networks, and a pool for activations. Read: compiled, norm_act, gradient_sums, compiling, pool."""

from deepres.kernels.compiled import Status, status
from deepres.kernels.norm_act import norm_act
from deepres.kernels.pool import pooled_tensors

__all__ = ["Status", "norm_act", "pooled_tensors", "status"]
