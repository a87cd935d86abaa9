"""What gates and exits read of a signal in the middle of a network, and what exits learn to say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 128  # channels of a reader, so that it costs no more than a block
FINEST = 32  # places a side that a reader sees; of large images the first signals have more, at a cost that they do not repay


def pooled(signal: Tensor) -> Tensor:
    """(N, C): the mean over places of (N, C, H, W), or over tokens of (N, L, C)."""
    return signal.mean((2, 3)) if signal.ndim == 4 else signal.mean(1)


def pooled_by_quarter(signal: Tensor) -> Tensor:
    """(N, 4 C): the means over the quarters of (N, C, H, W); of (N, L, C) the mean over tokens and the first token, (N, 2 C)."""
    if signal.ndim == 4:
        high, wide = signal.shape[2:]
        if high % 2 or wide % 2:
            return F.adaptive_avg_pool2d(signal, 2).flatten(1)
        return F.avg_pool2d(signal, (high // 2, wide // 2)).flatten(1)  # the same, and up to twice as fast
    return torch.cat([signal.mean(1), signal[:, 0]], 1)


def learnt(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, classes): what exits learn, half the network's own answer and half the label (Zhang et al. 2019)."""
    return (logits.softmax(1) + F.one_hot(labels, logits.shape[1])) / 2


def coarse(signal: Tensor) -> Tensor:
    """(N, C, H, W) with neighbouring places averaged until there are at most ``FINEST`` a side."""
    by = -(-max(signal.shape[2:]) // FINEST)
    return F.avg_pool2d(signal, by, ceil_mode=True) if by > 1 else signal


class Coarser(nn.Module):
    """``coarse`` as a layer."""

    def forward(self, signal: Tensor) -> Tensor:
        return coarse(signal)


def readers(signals: Sequence[Tensor]) -> list[nn.Sequential]:
    """For each signal but the last, what an exit there does before it pools: as many halvings as still lie ahead of it.

    Early features are local and are no classes yet when they are averaged (Huang et al. 2018, MSDNet); a strided convolution for
    each stage that is to come makes a network in miniature of the exit, for about what a block costs. A signal of the last size,
    or of tokens, is read as it is, by an empty sequence.
    """
    last = signals[-1]
    return [_reader(one.shape[1], one.shape[2] if one.ndim == 4 else 1, last.shape[2]) for one in signals[:-1]]


def _reader(channels: int, side: int, last: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if side > max(FINEST, last):
        layers, side = [Coarser()], -(-side // -(-side // FINEST))
    factor = 4  # narrow first layers see too little: at once as wide as two stages on
    while side > last:
        width, factor = min(factor * channels, WIDEST), 2
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels, side = width, -(-side // 2)
    return nn.Sequential(*layers)
