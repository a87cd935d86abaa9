"""The residual site: one place in a network where ``y = after(shortcut(x) + branch(x))``, and what can be done there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepres.adapters.patterns import SitePattern, patterns_of
from deepres.adapters.surgery import can_delete, delete_blocks
from deepres.errors import DeepresError
from deepres.nn import ResNet


@dataclass(frozen=True)
class Observation:
    """What passed through a site in one call; all of one shape but ``x``, which a stage's opening block reshapes."""

    x: Tensor  # what came in
    shortcut: Tensor  # shortcut(x)
    branch: Tensor  # f(x)
    out: Tensor  # after(shortcut(x) + f(x))


@dataclass(frozen=True)
class GradientSplit:
    """What came back through a site in one backward pass: ``total = shortcut + branch``, all of the input's shape.

    Where the shortcut is the identity, its part is the gradient at the sum itself: the +1 in ``dh/dx = 1 + df/dx``.
    """

    total: Tensor
    shortcut: Tensor
    branch: Tensor


class ZeroBranch(nn.Module):
    """Stands where a removed branch did its work, and adds nothing."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(_first(args, kwargs))
        return (zeros, None) if self.pair else zeros


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The signal among a block's arguments: the first of them."""
    return args[0] if args else next(iter(kwargs.values()))


def _exchange(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: change(kwargs[name])}


def _signal(out: Any) -> Tensor:
    """The signal in what a block gives: itself, or the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def _patched(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, calls of ``module`` go to ``forward``, over whatever stood there before."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@dataclass(frozen=True, eq=False)
class Site:
    """One residual site of ``model``. The verbs that change something return contexts that always restore it."""

    name: str  # the block's path, and the part's name where the block holds several sites
    path: str  # dotted path of the block in the model
    block: nn.Module
    model: nn.Module = dataclasses.field(repr=False)
    pattern: SitePattern = dataclasses.field(repr=False)

    def _need(self, part: str) -> nn.Module:
        module = self.pattern.find(self.block, part)
        if module is None:
            names = " or ".join(map(repr, getattr(self.pattern, part)))
            raise DeepresError(f"site {self.name!r}: {type(self.block).__name__} has no {names}")
        return module

    @property
    def is_inner(self) -> bool:
        """Whether the block holds several sites, of which this is one, as a Transformer's attention or MLP."""
        return bool(self.pattern.part)

    @property
    def kind(self) -> str:
        """The part's name where the block holds several sites, else the block's class."""
        return self.pattern.part or type(self.block).__name__

    @property
    def entry(self) -> nn.Module:
        """The module whose input is the site's: the branch's first module in a block of several sites, else the block."""
        return self._need("start") if self.is_inner else self.block

    @property
    def end(self) -> nn.Module:
        """The module whose output is the branch's."""
        return self._need("end")

    @property
    def activation(self) -> nn.Module | None:
        """The module behind the sum; None where the sum itself is the output."""
        after = self.pattern.find(self.block, "after")
        return None if after is None or isinstance(after, nn.Identity) else after

    @property
    def reshapes(self) -> bool:
        """Whether the shortcut is more than the identity, as where a stage opens; such a block cannot be left out."""
        path = self.pattern.find(self.block, "shortcut")
        return path is not None and not isinstance(path, nn.Identity)

    @property
    def branch_modules(self) -> list[nn.Module]:
        """The modules whose weights are the branch's."""
        if self.pattern.part:
            return [self._need(part) for part in ("start", "core")]
        path = self.pattern.find(self.block, "shortcut")
        return [child for child in self.block.children() if child is not path]

    def without_branch(self, x: Tensor) -> Tensor:
        """What the site puts out when its branch is nothing: ``after(shortcut(x))``."""
        path, after = self.pattern.find(self.block, "shortcut"), self.pattern.find(self.block, "after")
        out = x
        if path is not None and not isinstance(path, nn.Identity):
            shared = self.pattern.find(self.block, "shared")
            out = path(shared(x) if shared is not None else x)
        if after is None or isinstance(after, nn.Identity):
            return out
        return after(out.clone() if out is x else out)  # an in-place activation must not reach back into the input

    # ---- seeing

    @contextmanager
    def observe(self, see: Callable[[Observation], None]) -> Iterator[None]:
        """Call ``see`` with each pass through the site. The outputs stay the same to the bit."""
        now: dict[str, Tensor] = {}

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now["x"] = _first(args, kwargs)

        def bend(_: nn.Module, __: Any, out: Tensor) -> None:
            now["shortcut"] = out

        def branch(_: nn.Module, __: Any, out: Any) -> None:
            now.setdefault("branch", _signal(out).clone())  # many blocks add in place, onto this very tensor

        def leave(out: Tensor) -> None:
            see(Observation(now["x"], now.get("shortcut", now["x"]), now["branch"], out))
            now.clear()

        path, then = self.pattern.find(self.block, "shortcut"), self.pattern.find(self.block, "then")
        entry = self._need("start") if self.pattern.part else self.block
        with ExitStack() as stack:
            stack.callback(entry.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if path is not None:
                stack.callback(path.register_forward_hook(bend).remove)
            stack.callback(self.end.register_forward_hook(branch).remove)
            if then is not None:
                hook = then.register_forward_pre_hook(lambda _, args, kwargs: leave(_first(args, kwargs)), with_kwargs=True)
            else:
                hook = self.block.register_forward_hook(lambda _, __, out: leave(_signal(out)))
            stack.callback(hook.remove)
            yield

    @property
    def splits_gradient(self) -> bool:
        """Whether ``gradients`` can tell the two ways apart here."""
        return not (self.reshapes and self.pattern.shared)

    @contextmanager
    def gradients(
        self,
        see: Callable[[GradientSplit], None] | None = None,
        through: Literal["both", "shortcut", "branch"] | Callable[[], Literal["both", "shortcut", "branch"]] = "both",
    ) -> Iterator[None]:
        """For forward passes inside: call ``see`` when a backward pass comes through, with what came by either way.

        ``through`` lets only one of the two ways carry the gradient on (the paths of Veit et al. 2016); as a function it is
        asked in each backward pass. The forward pass is the same to the bit.
        """
        inner = bool(self.pattern.part)
        now: dict[str, Tensor] = {}

        def arrive(grad: Tensor) -> Tensor:
            """At the input of the block, or of the branch of an inner site."""
            way = through() if callable(through) else through
            if inner:
                now["branch"] = grad
                if see is not None:
                    see(GradientSplit(now["sum"] + grad, now["sum"], grad))
                return torch.zeros_like(grad) if way == "shortcut" else grad
            shortcut = now["shortcut"] if self.reshapes else now["sum"]
            branch = grad - shortcut
            if see is not None:
                see(GradientSplit(grad, shortcut, branch))
            return {"both": grad, "shortcut": shortcut, "branch": branch}[way]

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = _first(args, kwargs)
            if not (torch.is_grad_enabled() and x.requires_grad):
                return None
            if inner:

                def whole(grad: Tensor) -> Tensor:
                    way = through() if callable(through) else through
                    return now["branch"] if way == "branch" else grad

                x.register_hook(whole)
            own = x.view_as(x)  # so that only what comes through here is seen
            own.register_hook(arrive)
            return _exchange(args, kwargs, lambda _: own)

        def keep(key: str) -> Callable[[Tensor], None]:
            def hook(grad: Tensor) -> None:
                now[key] = grad

            return hook

        def bend(_: nn.Module, args: tuple[Any, ...]) -> Any:
            if not (torch.is_grad_enabled() and args[0].requires_grad):
                return None
            own = args[0].view_as(args[0])
            own.register_hook(keep("shortcut"))
            return (own, *args[1:])

        def branch(_: nn.Module, __: Any, out: Any) -> None:
            if torch.is_grad_enabled() and _signal(out).requires_grad:
                _signal(out).register_hook(keep("sum"))

        if not self.splits_gradient:
            raise DeepresError(f"site {self.name!r}: its two ways begin with the same layer, so they cannot be told apart")
        path = self.pattern.find(self.block, "shortcut")
        entry = self._need("start") if inner else self.block
        with ExitStack() as stack:
            stack.callback(entry.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if self.reshapes and path is not None:
                stack.callback(path.register_forward_pre_hook(bend).remove)
            stack.callback(self.end.register_forward_hook(branch).remove)
            yield

    # ---- changing

    @contextmanager
    def scale(self, factor: float | Tensor) -> Iterator[None]:
        """Multiply the branch's output by ``factor``: a number, or one per sample, shape (N,)."""

        def multiply(_: nn.Module, __: Any, out: Any) -> Any:
            signal = _signal(out)
            if isinstance(factor, Tensor) and factor.ndim == 1:
                scaled = signal * factor.to(signal).view(-1, *[1] * (signal.ndim - 1))
            else:
                scaled = signal * factor
            return (scaled, *out[1:]) if isinstance(out, tuple) else scaled

        handle = self.end.register_forward_hook(multiply)
        try:
            yield
        finally:
            handle.remove()

    def bypass(self, skip: Tensor | None = None) -> AbstractContextManager[None]:
        """Leave the branch out, for the whole batch or for the samples where ``skip`` (N,) is true.

        The branch is not computed for what skips it, so this saves its time.
        """
        return self._bypass_part(skip) if self.pattern.part else self._bypass_block(skip)

    @contextmanager
    def _bypass_block(self, skip: Tensor | None) -> Iterator[None]:
        original = self.block.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if skip is None:
                return self.without_branch(x)
            keep = _kept(skip, len(x))
            if len(keep) == len(x):
                return original(x, *args, **kwargs)
            out = self.without_branch(x)
            if len(keep) == 0:
                return out
            return out.index_copy(0, keep, original(x.index_select(0, keep), *args, **kwargs).to(out.dtype))

        with _patched(self.block, forward):
            yield

    @contextmanager
    def _bypass_part(self, skip: Tensor | None) -> Iterator[None]:
        """Samples are gathered before the branch's first module and scattered, among zeros, behind its core."""
        start, core = self._need("start"), self._need("core")
        first, work = start.forward, core.forward
        nothing = ZeroBranch(self.pattern.pair)
        rows = 0

        def enter(*args: Any, **kwargs: Any) -> Any:
            nonlocal rows
            x = _first(args, kwargs)
            rows = len(x)
            if skip is None:
                return x
            keep = _kept(skip, rows)
            return first(*args, **kwargs) if len(keep) == rows else first(x.index_select(0, keep)) if len(keep) else x[:0]

        def compute(*args: Any, **kwargs: Any) -> Any:
            if skip is None:
                return nothing(*args, **kwargs)
            keep = _kept(skip, rows)
            if len(keep) == rows:
                return work(*args, **kwargs)
            x = _first(args, kwargs)
            zeros = x.new_zeros(rows, *x.shape[1:])
            if len(keep) == 0:
                return (zeros, None) if self.pattern.pair else zeros

            def gather(value: Any) -> Any:  # masks and the like come for the whole batch
                own = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
                return value.index_select(0, keep) if own else value

            out = work(*map(gather, args), **{key: gather(value) for key, value in kwargs.items()})
            filled = zeros.to(_signal(out).dtype).index_copy(0, keep, _signal(out))
            return (filled, *out[1:]) if isinstance(out, tuple) else filled

        with _patched(start, enter), _patched(core, compute):
            yield

    def remove(self) -> None:
        """Take the branch out of the network for good: afterwards the model computes what ``bypass()`` made it compute.

        In a network of ours the block goes and the configuration follows. Elsewhere a block whose predecessor ends in the
        same ReLU goes, and another is replaced by what comes after its sum. One of several sites in a block leaves a module
        that adds nothing. Sites found before are stale afterwards where blocks moved up: call ``sites`` again.

        Raises ``DeepresError`` where the shortcut is not the identity: without the block the shapes no longer fit.
        """
        if self.reshapes:
            raise DeepresError(f"site {self.name!r} changes the signal's shape, so it cannot be removed")
        parent_name, _, index = self.path.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        if getattr(parent, index, None) is not self.block:
            raise DeepresError(f"site {self.name!r} is stale: the model changed since; call sites(model) again")
        after = self.pattern.find(self.block, "after")
        if self.pattern.part:
            for part, module in (("start", nn.Identity()), ("core", ZeroBranch(self.pattern.pair))):
                name = next(name for name in getattr(self.pattern, part) if self.pattern.find(self.block, part) is not None)
                self.block.set_submodule(name, module)
        elif isinstance(self.model, ResNet):
            if not can_delete(self.model, self.path):
                raise DeepresError(
                    f"site {self.name!r} is the last block of its stage, which needs one, or opens a pre-activation one"
                )
            delete_blocks(self.model, [self.path])
        elif isinstance(parent, nn.Sequential) and self._follows_its_like(parent, int(index)):
            delete_blocks(self.model, [self.path])
        else:
            setattr(parent, index, after if after is not None else nn.Identity())

    def _follows_its_like(self, parent: nn.Sequential, index: int) -> bool:
        """Whether the input of ``after`` has passed the same kind of ReLU already, so that another changes nothing."""
        after = self.pattern.find(self.block, "after")
        if after is None or isinstance(after, nn.Identity):
            return True
        rows = patterns_of(parent[index - 1]) if index else []
        return isinstance(after, nn.ReLU) and any(isinstance(row.find(parent[index - 1], "after"), nn.ReLU) for row in rows)


def _kept(skip: Tensor, rows: int) -> Tensor:
    if skip.shape != (rows,):
        raise DeepresError(f"bypass needs one truth value per sample, {rows}, not shape {tuple(skip.shape)}")
    return (~skip).nonzero().squeeze(1)


def sites(model: nn.Module) -> list[Site]:
    """All residual sites of ``model``, in the order of its modules; an empty list where it has none.

    Knows our own networks; torchvision's ResNet family, ConvNeXt and ViT; timm's ResNet family, ConvNeXt and ViT; Hugging
    Face's ViT, DeiT, DINOv2, GPT-2, Llama, Mistral and Qwen2; and what ``register_site`` was told of.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    found = []
    for path, block in model.named_modules():
        for row in patterns_of(block):
            if not isinstance(row.find(block, "core"), ZeroBranch):
                name = f"{path}.{row.part}" if row.part else path
                found.append(Site(name, path, block, model, row))
    return found
