"""A first convolution that starts from the images instead of from chance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.errors import DeepresError


@torch.no_grad()
def whiten_first_convolution(net: nn.Module, images: Tensor) -> None:
    """Let the first convolution begin with the principal components of the images' patches, and with their negatives.

    ``images`` (N, C, H, W), as the network gets them. Components come in the order of their variance, at most half as many as there are
    filters; filters beyond them and their negatives stay. Each filter keeps its norm: the norm layer behind it brings all outputs to
    one variance, which whitens them, and of a component and its negative a ReLU loses nothing. (Page 2019, *How to train your ResNet*,
    part 8; Jordan 2024.)

    Raises ``DeepresError`` for a network that begins with no ordinary convolution of the images.
    """
    conv = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None or conv.groups != 1 or conv.in_channels != images.shape[1]:
        raise DeepresError("a recipe with whiten is for networks that begin with a convolution of the images; leave it out")
    patches = F.unfold(images.double(), conv.kernel_size, conv.dilation, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    _, components = torch.linalg.eigh(torch.cov(patches.T))  # columns, the smallest variance first
    count = min(conv.out_channels // 2, components.shape[1])
    filters = components.T.flip(0)[:count].to(conv.weight)
    for start, signed in ((0, filters), (count, -filters)):
        own = conv.weight[start : start + count]
        own.copy_(signed.view_as(own) * own.flatten(1).norm(dim=1)[:, None, None, None])
