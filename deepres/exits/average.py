"""Averages of the answers of several exits, as log-probabilities: of a batch, and of a single input in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Average:
    """Average of the answers of the exits so far. An exit does not count for inputs that are out of distribution for it."""

    total: Tensor  # (N, K), sum of log-probabilities
    count: Tensor  # (N, 1), number of exits that count

    @classmethod
    def of(cls, before: Average | None, logits: Tensor, known: Tensor) -> Average:
        """Add the ``logits`` (N, K) of one more exit to ``before``, for the inputs that are in distribution, ``known`` (N,)."""
        counted = known.unsqueeze(1)
        total = logits.log_softmax(1).masked_fill(~counted, 0.0)
        return cls(total, counted.long()) if before is None else cls(before.total + total, before.count + counted)

    @classmethod
    def add(cls, before: Average | None, logits: Tensor, confidence: Tensor) -> tuple[Average, Tensor, Tensor]:
        """Add one more exit: (the new average, its logits (N, K), its confidence (N,)).

        The confidence is 0 where the input is out of distribution for this exit. Where it is out of distribution for all exits so
        far, the logits are this exit's own.
        """
        known = confidence > 0
        average = cls.of(before, logits, known)
        mean = torch.where(average.count > 0, average.mean, logits)
        return average, mean, mean.softmax(1).amax(1).masked_fill(~known, 0.0)

    @property
    def mean(self) -> Tensor:
        """Mean log-probabilities, (N, K)."""
        return self.total / self.count.clamp(min=1)

    def take(self, rows: Tensor) -> Average:
        """Average of some rows of the batch."""
        return Average(self.total[rows], self.count[rows])

    def with_last(self, logits: Tensor) -> Tensor:
        """Mean of the exits and of the network's own calibrated ``logits``, (N, K) -> (N, K)."""
        return Average.of(
            self, logits, logits.new_ones(logits.shape[0], dtype=torch.bool)
        ).mean  # len() would fix it in an exported graph


@dataclass
class SingleAverage:
    """``Average`` of a single input, in NumPy."""

    total: np.ndarray  # (K,), sum of log-probabilities
    count: int  # number of exits that count

    @classmethod
    def add(
        cls, before: Average | SingleAverage | None, logits: np.ndarray, confidence: float
    ) -> tuple[SingleAverage, np.ndarray, float]:
        """As ``Average.add``."""
        if isinstance(before, Average):
            before = cls(before.total[0].numpy(), int(before.count))
        average = before if before is not None else cls(np.zeros((), np.float32), 0)
        if confidence > 0:
            shifted = logits - logits.max()
            average = cls(average.total + shifted - math.log(np.exp(shifted).sum()), average.count + 1)
        if not average.count:
            return average, logits, confidence
        mean = average.total / average.count
        return average, mean, 1 / float(np.exp(mean - mean.max()).sum()) if confidence > 0 else 0.0

    def with_last(self, logits: Tensor) -> Tensor:
        """As ``Average.with_last``."""
        return (logits.log_softmax(1) + torch.from_numpy(self.total)) / (self.count + 1)
