"""Features of a signal inside a network, as gates and exits read them, and the targets of exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 128  # most channels of a reader, so that it costs no more than a block
FINEST = 32  # most positions a side that a reader sees: more of them cost time and gain no accuracy


def pooled(signal: Tensor) -> Tensor:
    """Mean over positions, (N, C, H, W) -> (N, C), or over tokens, (N, L, C) -> (N, C)."""
    return signal.mean((2, 3)) if signal.ndim == 4 else signal.mean(1)


def pooled_by_quarter(signal: Tensor) -> Tensor:
    """Means over the four quarters, (N, C, H, W) -> (N, 4 C), or the mean and the first token, (N, L, C) -> (N, 2 C)."""
    if signal.ndim == 4:
        high, wide = signal.shape[2:]
        if high % 2 or wide % 2:
            return F.adaptive_avg_pool2d(signal, 2).flatten(1)
        return F.avg_pool2d(signal, (high // 2, wide // 2)).flatten(1)  # equal to the adaptive pooling, and up to twice as fast
    return torch.cat([signal.mean(1), signal[:, 0]], 1)


def exit_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """Target probabilities of exits, (N, K): mean of the network's own answer and the label (Zhang et al. 2019).

    ``logits`` (N, K) are the network's, ``labels`` (N,).
    """
    return (logits.softmax(1) + F.one_hot(labels, logits.shape[1])) / 2


def coarse(signal: Tensor) -> Tensor:
    """Average neighbouring positions of (N, C, H, W) until there are at most ``FINEST`` a side."""
    by = -(-max(signal.shape[2:]) // FINEST)
    return F.avg_pool2d(signal, by, ceil_mode=True) if by > 1 else signal


class Coarser(nn.Module):
    """Layer that applies ``coarse``."""

    def forward(self, signal: Tensor) -> Tensor:
        return coarse(signal)


def readers(signals: Sequence[Tensor]) -> list[nn.Sequential]:
    """Build for each signal but the last the layers that its exit applies before pooling: one strided convolution a remaining stage.

    Early features are local and do not separate classes when they are averaged (Huang et al. 2018, MSDNet). The convolutions make the
    exit a small network, which costs about as much as a block. The reader of a signal of the last size, or of tokens, is empty.
    """
    last = signals[-1]
    return [_reader(one.shape[1], one.shape[2] if one.ndim == 4 else 1, last.shape[2]) for one in signals[:-1]]


def _reader(channels: int, side: int, last: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if side > max(FINEST, last):
        layers, side = [Coarser()], -(-side // -(-side // FINEST))
    factor = 4  # the first layer is as wide as the network two stages on, because narrow ones lose too much
    while side > last:
        width, factor = min(factor * channels, WIDEST), 2
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels, side = width, -(-side // 2)
    return nn.Sequential(*layers)
