"""He initialisation (He et al. 2015b, arXiv:1502.01852), and blocks that start as the identity."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module, *, zero_last: bool = False) -> None:
    """Convolutions: normal, variance ``2 / fan_out``. Norms: scale 1, shift 0. Linear layers: PyTorch's own default.

    With ``zero_last`` the layer marked ``ends_branch`` starts at zero, so each residual block starts as its shortcut
    (Goyal et al. 2017, section 5.1).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if zero_last and getattr(module, "ends_branch", False):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
