"""The one equation: ``h(x) = after(shortcut(x) + f(x))``."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Residual(nn.Module):
    """``h(x) = after(shortcut(x) + branch(x))`` (He et al. 2015, equations 1 and 2; 2016, equations 1 and 2).

    ``shortcut`` and ``branch`` map the same input to equal shapes. ``after`` is a ReLU behind a post-activation sum and the
    identity behind a pre-activation one. This forward is the only place where a block adds, normalises last and activates,
    so a fused kernel has one place to take over.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.after = after if after is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.branch(x))


def plain(branch: nn.Module, after: nn.Module | None = None) -> nn.Sequential:
    """Build the block without its shortcut: ``h(x) = after(branch(x))``."""
    return nn.Sequential(OrderedDict(branch=branch, after=after if after is not None else nn.Identity()))
