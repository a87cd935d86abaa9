"""Exit heads: calibrated classifiers of a signal inside a network, which detect signals that are out of distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepres.exits.readout import Coarser, pooled_by_quarter


class StandardisedLinear(nn.Module):
    """Linear function of features, standardised by the mean and deviation of the features that it was fitted on.

    Features whose standardised norm exceeds ``limit`` are out of distribution.
    """

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
        """Set mean, deviation and limit from ``features`` (N, F). The limit is 1.25 times the 99.5 % quantile of their norms."""
        self.inverse.copy_(1 / features.std(0).clamp(min=1e-6))
        self.shift.copy_(-features.mean(0) * self.inverse)
        self.limit.copy_(1.25 * torch.quantile(self.standardised(features).norm(dim=1), 0.995))

    def standardised(self, features: Tensor) -> Tensor:
        """Standardise features, (N, F) -> (N, F)."""
        return torch.addcmul(self.shift, features.float(), self.inverse)

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) -> (N, outputs), and (N, 1) whether the features are out of distribution."""
        z = self.standardised(features)
        return torch.addmm(self.bias, z, self.weight.T), torch.linalg.vector_norm(z, dim=1, keepdim=True) > self.limit


class ExitHead(StandardisedLinear):
    """Calibrated classifier of the output of a segment. Its confidence is 0 where the signal is out of distribution.

    ``reader``: layers that process the signal before it is pooled, as ``readers`` builds them.
    """

    temperature: Tensor

    def __init__(self, features: int, outputs: int, reader: nn.Sequential | None = None) -> None:
        super().__init__(features, outputs)
        self.reader = reader if reader is not None else nn.Sequential()
        self.reader.to(memory_format=torch.channels_last)  # which saves a fifth of the time
        self.register_buffer("temperature", torch.ones(()))
        self._numpy: tuple[object, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]] | None = None

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Classify signals: (N, C, ...) -> (N, K) calibrated logits, (N,) confidences."""
        logits, outside = self.linear(self.read(signal))
        logits = logits / self.temperature
        return logits, logits.softmax(1).amax(1).masked_fill(outside[:, 0], 0.0)

    def single(self, signal: Tensor) -> tuple[np.ndarray, float]:
        """Classify one signal on a CPU: (1, C, ...) -> (K,) calibrated logits, confidence.

        Behind the pooling this uses NumPy, whose calls on a few numbers take a tenth of the time of PyTorch's.
        """
        weight, bias, inverse, shift, limit = self._arrays()
        features = self.read(signal)[0].float().numpy()
        logits = weight @ features
        logits += bias
        z = features * inverse
        z += shift
        if z @ z > limit:
            return logits, 0.0
        return logits, 1 / float(np.exp(logits - logits.max()).sum())

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """(weight and bias, with standardisation and temperature folded in; inverse, shift, square of the limit)."""
        version = (self.weight._version, self.temperature._version)
        if self._numpy is None or self._numpy[0] != version:
            weight = self.weight / self.temperature
            bias = self.bias / self.temperature + weight @ self.shift
            arrays = [t.numpy() for t in (weight * self.inverse, bias, self.inverse, self.shift)]
            self._numpy = version, (arrays[0], arrays[1], arrays[2], arrays[3], float(self.limit) ** 2)
        return self._numpy[1]

    def read(self, signal: Tensor) -> Tensor:
        """Features of signals, (N, C, ...) -> (N, F)."""
        return pooled_by_quarter(self.reader(signal))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ExitHead:
        """Build a head that ``state`` can be loaded into; the shapes of the tensors determine its reader."""
        convs = [value for key, value in state.items() if key.startswith("reader.") and key.endswith(".weight")]
        first: list[nn.Module] = [Coarser()] if convs and "reader.0.weight" not in state else []  # it has no weights
        layers = [layer for w in convs for layer in (nn.Conv2d(w.shape[1], w.shape[0], 3, 2, 1), nn.ReLU(inplace=True))]
        outputs, features = state["weight"].shape
        return cls(features, outputs, nn.Sequential(*first, *layers))


def without_norms(reader: nn.Sequential) -> nn.Sequential:
    """Fold the norms of ``reader`` into its convolutions, for eval mode."""
    layers: list[nn.Module] = []
    for layer in reader.eval():
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers.pop()
            assert isinstance(conv, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(conv, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
