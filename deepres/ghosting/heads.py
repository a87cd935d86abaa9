"""The small functions a ghost decides with: gates in front of its segments, exits behind them. Both read the pooled signal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepres.exits import Coarser, pooled, pooled_by_quarter


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
    """An answer from a chunk's output, with a calibrated temperature. It has no confidence in a signal that is strange.

    ``reader`` is what it does to the signal before it pools: a few strided convolutions where stages still lie ahead.
    """

    temperature: Tensor

    def __init__(self, features: int, outputs: int, reader: nn.Sequential | None = None) -> None:
        super().__init__(features, outputs)
        self.reader = reader if reader is not None else nn.Sequential()
        self.reader.to(memory_format=torch.channels_last)  # convolutions and pooling in a fifth less of the time
        self.register_buffer("temperature", torch.ones(()))
        self._numpy: tuple[object, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]] | None = None

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, ...) -> (N, classes) calibrated logits, (N,) confidences, 0 where the signal is strange."""
        logits, strange = self.linear(self.read(signal))
        logits = logits / self.temperature
        return logits, logits.softmax(1).amax(1).masked_fill(strange[:, 0], 0.0)

    def of_one(self, signal: Tensor) -> tuple[np.ndarray, float]:
        """(1, C, ...) on a CPU -> (classes,) calibrated logits, and the confidence: the same by NumPy.

        For a single input all that is behind the pooling is a dozen calls on a few numbers each, of which NumPy's cost a tenth.
        """
        weight, bias, inverse, shift, limit = self._by_numpy()
        features = self.read(signal)[0].float().numpy()
        logits = weight @ features
        logits += bias
        z = features * inverse
        z += shift
        if z @ z > limit:
            return logits, 0.0
        return logits, 1 / float(np.exp(logits - logits.max()).sum())

    def _by_numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """(weight and bias of the features as they are, with the temperature in them; inverse, shift, the limit's square)."""
        version = (self.weight._version, self.temperature._version)
        if self._numpy is None or self._numpy[0] != version:
            weight = self.weight / self.temperature
            bias = self.bias / self.temperature + weight @ self.shift
            arrays = [t.numpy() for t in (weight * self.inverse, bias, self.inverse, self.shift)]
            self._numpy = version, (arrays[0], arrays[1], arrays[2], arrays[3], float(self.limit) ** 2)
        return self._numpy[1]

    def read(self, signal: Tensor) -> Tensor:
        """(N, C, ...) -> (N, features)."""
        return pooled_by_quarter(self.reader(signal))

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Exit:
        """One that ``state`` can be loaded into: its shapes tell of the reader."""
        convs = [value for key, value in state.items() if key.startswith("reader.") and key.endswith(".weight")]
        first: list[nn.Module] = [Coarser()] if convs and "reader.0.weight" not in state else []  # it has no weights
        layers = [layer for w in convs for layer in (nn.Conv2d(w.shape[1], w.shape[0], 3, 2, 1), nn.ReLU(inplace=True))]
        outputs, features = state["weight"].shape
        return cls(features, outputs, nn.Sequential(*first, *layers))


@dataclass
class SaidOfOne:
    """What exits have said of a single input."""

    total: np.ndarray  # (classes,), of log-probabilities
    count: int

    @classmethod
    def hear(
        cls, before: Said | SaidOfOne | None, logits: np.ndarray, confidence: float
    ) -> tuple[SaidOfOne, np.ndarray, float]:
        """As ``Said.hear``."""
        if isinstance(before, Said):
            before = cls(before.total[0].numpy(), int(before.count))
        said = before if before is not None else cls(np.zeros((), np.float32), 0)
        if confidence > 0:
            shifted = logits - logits.max()
            said = cls(said.total + shifted - math.log(np.exp(shifted).sum()), said.count + 1)
        if not said.count:
            return said, logits, confidence
        mean = said.total / said.count
        return said, mean, 1 / float(np.exp(mean - mean.max()).sum()) if confidence > 0 else 0.0


@dataclass
class Said:
    """What exits have said of some inputs, to take the mean of; an exit to which an input is strange says nothing of it."""

    total: Tensor  # (N, classes), of log-probabilities
    count: Tensor  # (N, 1)

    @classmethod
    def of(cls, before: Said | None, logits: Tensor, known: Tensor) -> Said:
        """``before``, and one more exit's ``logits`` (N, classes) where the inputs are ``known`` (N,) to it."""
        heard = known.unsqueeze(1)
        total = logits.log_softmax(1).masked_fill(~heard, 0.0)
        return cls(total, heard.long()) if before is None else cls(before.total + total, before.count + heard)

    @classmethod
    def hear(cls, before: Said | None, logits: Tensor, confidence: Tensor) -> tuple[Said, Tensor, Tensor]:
        """(all that was said, its mean, how sure that is) after one more exit's ``logits`` (N, classes) and ``confidence`` (N,).

        Where the input is strange to the exit the confidence stays 0; where it is strange to all so far, the exit's own logits are left.
        """
        known = confidence > 0
        said = cls.of(before, logits, known)
        mean = torch.where(said.count > 0, said.mean, logits)
        return said, mean, mean.softmax(1).amax(1).masked_fill(~known, 0.0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count.clamp(min=1)

    def take(self, rows: Tensor) -> Said:
        return Said(self.total[rows], self.count[rows])


def without_norms(reader: nn.Sequential) -> nn.Sequential:
    """The same in eval mode, its norms folded into its convolutions."""
    layers: list[nn.Module] = []
    for layer in reader.eval():
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers.pop()
            assert isinstance(conv, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(conv, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
