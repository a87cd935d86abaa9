"""Residual branches: the ``f`` in ``h(x) = f(x) + x``.

A branch is a ``Sequential`` whose last layer that carries a scale is marked ``ends_branch``: initialised to zero, it makes
the block start as the identity, in whatever kind of block it stands.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

StrideIn = Literal["1x1", "3x3"]


class Branch(nn.Sequential):
    """A residual branch ``f``: (N, C, H, W) -> (N, C', H / stride, W / stride).

    With ``survival`` below 1 it has stochastic depth (Huang et al. 2016): in training it is computed with that probability, for
    the whole batch, and is nothing otherwise; in eval mode it is scaled by it, which is its mean.
    """

    survival: float = 1.0

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.last.ends_branch = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.survival == 1:
            return super().forward(x)
        if not self.training:
            return self.survival * super().forward(x)
        return super().forward(x) if float(torch.rand(())) < self.survival else self._nothing(x)

    @torch.no_grad()
    def fold_survival(self) -> None:
        """Put the scale of stochastic depth into the last layer: the same in eval mode, and always computed from now on."""
        for parameter in self.last.parameters():
            parameter.mul_(self.survival)
        self.survival = 1.0

    def _nothing(self, x: Tensor) -> Tensor:
        convs = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        stride = math.prod(conv.stride[0] for conv in convs)
        return x.new_zeros(len(x), convs[-1].out_channels, *(-(-side // stride) for side in x.shape[2:]))

    @property
    def last(self) -> nn.Module:
        """The last layer: a norm after post-activation, a convolution after pre-activation."""
        return next(reversed(self._modules.values()))


def _branch(convs: list[nn.Conv2d], preact: bool, opening: bool, norm: bool) -> Branch:
    """Put norms and activations around the convolutions: behind each of them, or (``preact``) before each.

    The opening block of a pre-activation stage receives an activated signal (see ``Stage``), so its first pair is left out.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, conv in enumerate(convs, 1):
        if preact:
            if not (opening and i == 1):
                if norm:
                    layers[f"norm{i}"] = nn.BatchNorm2d(conv.in_channels)
                # without a norm in front, the first activation would write into the block's input, which the shortcut reads
                layers[f"act{i}"] = nn.ReLU(inplace=norm or i > 1)
            layers[f"conv{i}"] = conv
        else:
            layers[f"conv{i}"] = conv
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(conv.out_channels)
            if i < len(convs):
                layers[f"act{i}"] = nn.ReLU(inplace=True)
    return Branch(layers)


def _conv(size: int, channels_in: int, channels_out: int, stride: int, norm: bool) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=not norm)


def basic(
    channels_in: int, width: int, stride: int = 1, *, preact: bool = False, opening: bool = False, norm: bool = True
) -> Branch:
    """Two 3x3 convolutions (He et al. 2015, Fig. 5 left; He et al. 2016 with ``preact``)."""
    return _branch([_conv(3, channels_in, width, stride, norm), _conv(3, width, width, 1, norm)], preact, opening, norm)


def bottleneck(
    channels_in: int,
    width: int,
    stride: int = 1,
    *,
    preact: bool = False,
    opening: bool = False,
    stride_in: StrideIn = "3x3",
    expansion: int = 4,
    norm: bool = True,
) -> Branch:
    """1x1 down to ``width``, 3x3, 1x1 up to ``expansion * width`` (He et al. 2015, Fig. 5 right).

    ``stride_in`` places the stride: the paper strides in the first ``"1x1"``, torchvision and most others in the ``"3x3"``.
    """
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    convs = [
        _conv(1, channels_in, width, first, norm),
        _conv(3, width, width, second, norm),
        _conv(1, width, expansion * width, 1, norm),
    ]
    return _branch(convs, preact, opening, norm)
