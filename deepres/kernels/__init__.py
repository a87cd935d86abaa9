"""Fused operations for training residual networks. Read: compiled -> norm_act."""

from deepres.kernels.compiled import Status, status
from deepres.kernels.norm_act import norm_act

__all__ = ["Status", "norm_act", "status"]
