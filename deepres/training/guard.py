"""Stop before a step that would ruin the weights, and say where the trouble began."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError


class NonFinite(DeepresError):
    """A loss or gradient that is infinite or not a number."""


def first_non_finite(model: nn.Module, loss_of: Callable[[], Tensor]) -> str:
    """Run forward and backward once more and name the first module whose output, or its gradient, is not finite."""
    bad_forward: list[str] = []
    bad_backward: list[str] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, out: object) -> None:
            if not isinstance(out, Tensor):
                return
            if not bad_forward and not bool(torch.isfinite(out).all()):
                bad_forward.append(name)
            if out.requires_grad:
                out.register_hook(lambda grad: None if bool(torch.isfinite(grad).all()) else bad_backward.append(name))

        return hook

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        loss_of().backward()
    finally:
        for handle in handles:
            handle.remove()
    if bad_forward:
        return f"the output of {bad_forward[0]!r} is the first that is not finite"
    if bad_backward:
        return f"the gradient is first not finite at the output of {bad_backward[0]!r}"
    grads = [name for name, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    return f"the gradient of {grads[0]!r} is not finite" if grads else "every module's output is finite, so it is the loss"
