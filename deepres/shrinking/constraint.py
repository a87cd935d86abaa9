"""A constraint on residuals: measures the ratio of each block's residual to its shortcut, and scales the residual, down to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepres.adapters import Block


def residual_ratio(branch: Tensor, shortcut: Tensor) -> Tensor:
    """Mean over the examples of ``|f(x)| / |x|``, for ``branch`` and ``shortcut`` of shape ``(N, ...)``; 0 of none.

    The shortcut counts as a constant, so that the gradient shrinks the residual and does not enlarge the shortcut. Scaling weights
    that a later norm normalises again does not change the ratio, because the output of the branch is measured.
    """
    exact = torch.promote_types(branch.dtype, torch.float32)
    norms = [t.to(exact).flatten(1).norm(dim=1) for t in (branch, shortcut.detach())]
    ratios = norms[0] / norms[1].clamp(min=1e-12)
    return ratios.mean() if len(ratios) else ratios.sum()  # a process may have no example


class ResidualConstraint:
    """Hooks on the sites of all ``blocks`` that scale their residuals and measure residual ratios; ``attach`` adds the hooks.

    ``scales[i]`` multiplies the residuals of block i: at 1 the block is unchanged, at 0 it is the identity. ``ratio(i)`` is the
    residual ratio of block i where i is in ``measured``; it carries gradients in training.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.scales = [1.0] * len(blocks)
        self.measured: set[int] = set()
        self._ratios: dict[int, list[Tensor]] = {}

    def ratio(self, i: int) -> Tensor | None:
        """Ratio of the scaled residual of block i in the last forward pass, the mean over its sites; None if it was not measured."""
        ratios = self._ratios.get(i)
        return torch.stack(ratios).mean() if ratios else None

    def clear(self) -> None:
        """Discard the measured ratios, and with them the graph that they hold."""
        self._ratios.clear()

    @contextmanager
    def bypassed(self, *indices: int) -> Iterator[None]:
        """Make these blocks the identity in forward passes inside the context."""
        before = list(self.scales)
        for i in indices:
            self.scales[i] = 0.0
        try:
            yield
        finally:
            self.scales[:] = before

    def attach(self) -> Callable[[], None]:
        """Add the hooks; call what is returned to remove them."""
        stack = ExitStack()
        for i, block in enumerate(self.blocks):
            for site in block.sites:
                shortcut: dict[str, Tensor] = {}
                handle = site.entry.register_forward_pre_hook(partial(self._enter, i, shortcut), with_kwargs=True)
                stack.callback(handle.remove)
                stack.callback(site.end.register_forward_hook(partial(self._scale, i, shortcut)).remove)
        return stack.close

    def _enter(self, i: int, shortcut: dict[str, Tensor], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if i in self.measured:
            shortcut["x"] = args[0] if args else next(iter(kwargs.values()))

    def _scale(self, i: int, shortcut: dict[str, Tensor], _: Any, __: Any, out: Any) -> Any:
        scale = self.scales[i]
        signal = out[0] if isinstance(out, tuple) else out
        if i in self.measured:
            # before it is scaled, because many blocks add the shortcut in place to the tensor that is returned here
            self._ratios.setdefault(i, []).append(scale * residual_ratio(signal, shortcut.pop("x")))
        elif scale == 1:
            return None
        scaled = signal * scale
        return (scaled, *out[1:]) if isinstance(out, tuple) else scaled
