"""The residual site: one place in a network where ``y = after(shortcut(x) + branch(x))``, and what can be done there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn import ResNet
from deepres.sites.adapters import Row, row_of


@dataclass(frozen=True)
class Observation:
    """What passed through a site in one call; all of one shape but ``x``, which a stage's opening block reshapes."""

    x: Tensor  # what came in
    shortcut: Tensor  # shortcut(x)
    branch: Tensor  # f(x)
    out: Tensor  # after(shortcut(x) + f(x))


@dataclass(frozen=True, eq=False)
class Site:
    """One residual block of ``model``. The verbs that change something return contexts that always restore it."""

    name: str  # dotted path of the block in the model
    block: nn.Module
    model: nn.Module = dataclasses.field(repr=False)
    row: Row = dataclasses.field(repr=False)

    @property
    def end(self) -> nn.Module:
        """The module whose output is the branch's."""
        module = self.row.find(self.block, "end")
        if module is None:
            raise DeepresError(f"site {self.name!r}: {type(self.block).__name__} has no {' or '.join(self.row.end)!r}")
        return module

    @property
    def reshapes(self) -> bool:
        """Whether the shortcut is more than the identity, as where a stage opens; such a block cannot be left out."""
        path = self.row.find(self.block, "shortcut")
        return path is not None and not isinstance(path, nn.Identity)

    def passed(self, x: Tensor) -> Tensor:
        """What the block puts out when its branch is nothing: ``after(shortcut(x))``."""
        path, after = self.row.find(self.block, "shortcut"), self.row.find(self.block, "after")
        out = path(x) if path is not None else x
        if after is None or isinstance(after, nn.Identity):
            return out
        return after(out.clone() if out is x else out)  # an in-place activation must not reach back into the input

    @contextmanager
    def observe(self, see: Callable[[Observation], None]) -> Iterator[None]:
        """Call ``see`` with each pass through the site. The outputs stay the same to the bit."""
        now: dict[str, Tensor] = {}

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            now["x"] = inputs[0]

        def bend(_: nn.Module, __: Any, out: Tensor) -> None:
            now["shortcut"] = out

        def branch(_: nn.Module, __: Any, out: Tensor) -> None:
            now["branch"] = out.clone()  # many blocks add in place, onto this very tensor

        def leave(_: nn.Module, __: Any, out: Tensor) -> None:
            see(Observation(now["x"], now.get("shortcut", now["x"]), now["branch"], out))
            now.clear()

        path = self.row.find(self.block, "shortcut")
        with ExitStack() as stack:
            stack.callback(self.block.register_forward_pre_hook(enter).remove)
            if path is not None:
                stack.callback(path.register_forward_hook(bend).remove)
            stack.callback(self.end.register_forward_hook(branch).remove)
            stack.callback(self.block.register_forward_hook(leave).remove)
            yield

    @contextmanager
    def scale(self, factor: float | Tensor) -> Iterator[None]:
        """Multiply the branch's output by ``factor``: a number, or one per sample, shape (N,)."""

        def multiply(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            if isinstance(factor, Tensor) and factor.ndim == 1:
                return out * factor.to(out).view(-1, *[1] * (out.ndim - 1))
            return out * factor

        handle = self.end.register_forward_hook(multiply)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def bypass(self, skip: Tensor | None = None) -> Iterator[None]:
        """Leave the branch out, for the whole batch or for the samples where ``skip`` (N,) is true.

        The branch is not computed for what skips it, so this saves its time.
        """
        original = self.block.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if skip is None:
                return self.passed(x)
            if skip.shape != x.shape[:1]:
                raise DeepresError(f"bypass needs one truth value per sample, {len(x)}, not shape {tuple(skip.shape)}")
            keep = (~skip).nonzero().squeeze(1)
            if len(keep) == len(x):
                return original(x, *args, **kwargs)
            out = self.passed(x)
            if len(keep) == 0:
                return out
            return out.index_copy(0, keep, original(x.index_select(0, keep), *args, **kwargs).to(out.dtype))

        self.block.forward = forward
        try:
            yield
        finally:
            del self.block.forward

    def remove(self) -> None:
        """Take the branch out of the network for good: afterwards the model computes what ``bypass()`` made it compute.

        In a network of ours the block goes and the configuration follows. Elsewhere a block whose predecessor ends in the
        same ReLU goes, and another is replaced by what comes after its sum. Sites found before are stale afterwards where
        blocks moved up: call ``sites`` again.

        Raises ``DeepresError`` where the shortcut is not the identity: without the block the shapes no longer fit.
        """
        if self.reshapes:
            raise DeepresError(f"site {self.name!r} changes the signal's shape, so it cannot be removed")
        parent_name, _, index = self.name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        if getattr(parent, index, None) is not self.block:
            raise DeepresError(f"site {self.name!r} is stale: the model changed since; call sites(model) again")
        after = self.row.find(self.block, "after")
        if isinstance(self.model, ResNet):
            stage = int(self.name.split(".")[1])
            blocks = list(self.model.config.blocks)
            if blocks[stage] == 1:
                raise DeepresError(f"site {self.name!r} is the last block of its stage, which needs one")
            blocks[stage] -= 1
            del parent[int(index)]  # type: ignore[operator]
            self.model.config = dataclasses.replace(self.model.config, blocks=tuple(blocks))
        elif isinstance(parent, nn.Sequential) and self._follows_its_like(parent, int(index)):
            del parent[int(index)]
        else:
            setattr(parent, index, after if after is not None else nn.Identity())

    def _follows_its_like(self, parent: nn.Sequential, index: int) -> bool:
        """Whether the input of ``after`` has passed the same kind of ReLU already, so that another changes nothing."""
        after = self.row.find(self.block, "after")
        if after is None or isinstance(after, nn.Identity):
            return True
        before = row_of(parent[index - 1]) if index else None
        return (
            isinstance(after, nn.ReLU) and before is not None and isinstance(before.find(parent[index - 1], "after"), nn.ReLU)
        )


def sites(model: nn.Module) -> list[Site]:
    """All residual sites of ``model``, in the order of its modules; an empty list where it has none.

    Knows our own networks, torchvision's and timm's ResNets, and what ``register_site`` was told of.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    found = ((name, module, row_of(module)) for name, module in model.named_modules())
    return [Site(name, module, model, row) for name, module, row in found if row is not None]
