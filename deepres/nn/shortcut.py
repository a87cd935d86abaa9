"""The shortcut of a residual block: what the input becomes before the branch is added (He et al. 2015, section 3.3)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from deepres.errors import DeepresError

Option = Literal["A", "B", "C"]
Padding = Literal["both", "end"]


class PadShortcut(nn.Module):
    """Option A: subsample by ``stride`` and fill the new channels with zeros. No parameters.

    ``padding`` says where the ``channels_out - channels_in`` new channels go: on ``"both"`` sides of the old ones
    (as in widely used CIFAR weights; the odd one goes to the end) or all at the ``"end"``.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, padding: Padding = "both") -> None:
        super().__init__()
        new = channels_out - channels_in
        if new < 0:
            raise DeepresError(
                f"shortcut option A can only add channels, not go from {channels_in} to {channels_out}; use option B"
            )
        self.before = new // 2 if padding == "both" else 0
        self.behind = new - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, behind={self.behind}"


def projection(channels_in: int, channels_out: int, stride: int, norm: bool = True) -> nn.Sequential:
    """A 1x1 convolution, followed by a norm unless the block is a pre-activation one."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    if norm:
        layers["norm"] = nn.BatchNorm2d(channels_out)
    return nn.Sequential(layers)


def shortcut(
    option: Option,
    channels_in: int,
    channels_out: int,
    stride: int = 1,
    *,
    padding: Padding = "both",
    norm: bool = True,
) -> nn.Module:
    """The paper's three options.

    A: identity, zero padding where the shape changes. B: identity, projection where the shape changes.
    C: projection everywhere. A stride changes the shape even when the widths are equal.
    """
    same = channels_in == channels_out and stride == 1
    if option == "C" or (option == "B" and not same):
        return projection(channels_in, channels_out, stride, norm)
    if option in ("A", "B"):
        return nn.Identity() if same else PadShortcut(channels_in, channels_out, stride, padding)
    raise DeepresError(f"unknown shortcut option {option!r}; the options are 'A', 'B' and 'C'")
