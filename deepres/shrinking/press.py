"""Press on residuals: measure how large each is against its shortcut, penalise that, and bound it, down to exactly nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepres.adapters import Block


def relative_size(branch: Tensor, shortcut: Tensor) -> Tensor:
    """``mean over examples of |f(x)| / |x|``, with the shortcut as a constant: it is the residual that shall shrink.

    A scale that a later norm undoes changes nothing here, since it is the branch's output that is measured, and against what it
    is added to.
    """
    exact = torch.promote_types(branch.dtype, torch.float32)
    sizes = [t.to(exact).flatten(1).norm(dim=1) for t in (branch, shortcut.detach())]
    return (sizes[0] / sizes[1].clamp(min=1e-12)).mean()


class Press:
    """Hooks on the sites of all units; ``on`` puts them there.

    ``openness[i]`` multiplies the residuals of unit i: 1 is the network as it is, 0 is the identity. ``wanted`` units report
    ``size(i)``, the relative size of what they add, which carries gradients while training.
    """

    def __init__(self, units: Sequence[Block]) -> None:
        self.units = units
        self.openness = [1.0] * len(units)
        self.wanted: set[int] = set()
        self._seen: dict[int, list[Tensor]] = {}

    def size(self, i: int) -> Tensor | None:
        """Of the residual that unit i added in the last forward pass, its openness included; of several sites, their mean."""
        seen = self._seen.get(i)
        return torch.stack(seen).mean() if seen else None

    def clear(self) -> None:
        """Forget what was measured, and the graph behind it."""
        self._seen.clear()

    @contextmanager
    def without(self, i: int) -> Iterator[None]:
        """For forward passes inside, unit i is the identity."""
        before, self.openness[i] = self.openness[i], 0.0
        try:
            yield
        finally:
            self.openness[i] = before

    def on(self) -> Callable[[], None]:
        """Put the hooks in place; the call that is returned takes them away."""
        stack = ExitStack()
        for i, unit in enumerate(self.units):
            for site in unit.sites:
                now: dict[str, Tensor] = {}
                handle = site.entry.register_forward_pre_hook(partial(self._enter, i, now), with_kwargs=True)
                stack.callback(handle.remove)
                stack.callback(site.end.register_forward_hook(partial(self._scale, i, now)).remove)
        return stack.close

    def _enter(self, i: int, now: dict[str, Tensor], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if i in self.wanted:
            now["x"] = args[0] if args else next(iter(kwargs.values()))

    def _scale(self, i: int, now: dict[str, Tensor], _: Any, __: Any, out: Any) -> Any:
        openness = self.openness[i]
        signal = out[0] if isinstance(out, tuple) else out
        if i in self.wanted:
            # of the branch's own output, before it is scaled: many blocks add in place, onto the very tensor that is returned
            self._seen.setdefault(i, []).append(openness * relative_size(signal, now.pop("x")))
        elif openness == 1:
            return None
        scaled = signal * openness
        return (scaled, *out[1:]) if isinstance(out, tuple) else scaled
