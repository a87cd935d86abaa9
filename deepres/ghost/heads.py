"""The small functions a ghost decides with: gates in front of its chunks, exits behind them. Both read the pooled signal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepres.sites import pooled, pooled_by_quarter


class Head(nn.Module):
    """A linear function of pooled signals, which knows how they were spread where it was fitted."""

    shift: Tensor
    inverse: Tensor
    limit: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, features))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("shift", torch.zeros(features))  # -mean / deviation
        self.register_buffer("inverse", torch.ones(features))  # 1 / deviation
        self.register_buffer("limit", torch.tensor(float("inf")))  # of the norm of the standardised features

    def standardise(self, features: Tensor) -> None:
        """Take the spread of ``features`` (N, F); what lies a quarter farther out than all but 0.5 % of them is strange."""
        self.inverse.copy_(1 / features.std(0).clamp(min=1e-6))
        self.shift.copy_(-features.mean(0) * self.inverse)
        self.limit.copy_(1.25 * torch.quantile(self.standardised(features).norm(dim=1), 0.995))

    def standardised(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.shift, features.float(), self.inverse)

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) -> (N, outputs), and (N, 1) of truth values: whether the features are strange."""
        z = self.standardised(features)
        return torch.addmm(self.bias, z, self.weight.T), torch.linalg.vector_norm(z, dim=1, keepdim=True) > self.limit


class Gate(Head):
    """What a chunk's blocks are worth for an input: the predicted log10 of how far its answer moves without each of them.

    Where the pooled signal lies far from what the gate was fitted on, it says nothing and every block is kept.
    """

    def forward(self, signal: Tensor) -> Tensor:
        """(N, C, ...) -> (N, blocks); infinite where the signal is strange."""
        worth, strange = self.linear(pooled(signal))
        return worth.masked_fill(strange, float("inf"))


class Exit(Head):
    """An answer from a chunk's output, with a calibrated temperature. It has no confidence in a signal that is strange."""

    temperature: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, ...) -> (N, classes) calibrated logits, (N,) confidences."""
        logits, strange = self.linear(pooled_by_quarter(signal))
        logits = logits / self.temperature
        return logits, logits.softmax(1).amax(1).masked_fill(strange[:, 0], 0.0)
