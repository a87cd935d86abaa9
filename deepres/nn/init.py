"""He initialisation (He et al. 2015b, arXiv:1502.01852), and blocks that start as the identity."""

from __future__ import annotations

from typing import Literal

from torch import nn

Init = Literal["he", "gaussian"]


def initialise(model: nn.Module, *, zero_last: bool = False, how: Init = "he") -> None:
    """Convolutions: normal, variance ``2 / fan_out``. Norms: scale 1, shift 0. Linear layers: PyTorch's own default.

    With ``zero_last`` the layer marked ``ends_branch`` starts at zero, so each residual block starts as its shortcut
    (Goyal et al. 2017, section 5.1). ``how="gaussian"`` draws convolutions with a deviation of 0.01 whatever their size, as
    was usual before; it is there to show why that is not done any more.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if how == "he":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if zero_last and getattr(module, "ends_branch", False):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
