"""See a site at work: its signals in the forward pass, its two gradients in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from deepres.adapters.calls import exchange, signal_in, signal_of
from deepres.adapters.compiled import uncompiled
from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.adapters.site import Site

Way = Literal["both", "shortcut", "branch"]


@dataclass(frozen=True)
class Observation:
    """Signals of one call of a site; all of one shape but ``x``, which a stage's opening block reshapes.

    Rows are examples, except where ``Site.folds_rows``: there an example has several rows, one after the other.
    """

    x: Tensor  # the input
    shortcut: Tensor  # shortcut(x)
    branch: Tensor  # f(x)
    out: Tensor  # after(shortcut(x) + f(x))


@dataclass(frozen=True)
class GradientSplit:
    """Gradients at a site in one backward pass: ``total = shortcut + branch``, all of the input's shape.

    Where the shortcut is the identity, its part is the gradient at the sum itself: the +1 in ``dh/dx = 1 + df/dx``.
    """

    total: Tensor
    shortcut: Tensor
    branch: Tensor


@contextmanager
def at_end(site: Site, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Call ``hook`` with the branch's output, once per call of the site; what it returns, if not None, replaces the output.

    Some blocks use one dropout for both of their branches. So only the first output behind the site's entry counts.
    """
    waiting = False

    def arm(_: nn.Module, __: Any, ___: Any) -> None:
        nonlocal waiting
        waiting = True

    def fire(_: nn.Module, __: Any, out: Any) -> Any:
        nonlocal waiting
        if not waiting:
            return None
        waiting = False
        return hook(out)

    with ExitStack() as stack:
        stack.callback(site.entry.register_forward_pre_hook(arm, with_kwargs=True).remove)
        stack.callback(site.end.register_forward_hook(fire).remove)
        yield


@contextmanager
def observe(site: Site, see: Callable[[Observation], None]) -> Iterator[None]:
    """``Site.observe``."""
    now: dict[str, Tensor] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now.clear()
        now["x"] = signal_of(args, kwargs)

    def bend(_: nn.Module, __: Any, out: Tensor) -> None:
        now["shortcut"] = out

    def branch(out: Any) -> None:
        now["branch"] = signal_in(out).clone()  # many blocks add in place, onto this very tensor

    def leave(out: Tensor) -> None:
        if "branch" in now:
            whole = out.reshape(now["branch"].shape)  # some flatten the image in front of the next branch
            see(Observation(now["x"], now.get("shortcut", now["x"]), now["branch"], whole))
        now.clear()

    path, then, after = (site.pattern.find(site.block, part) for part in ("shortcut", "then", "after"))
    with ExitStack() as stack:
        stack.enter_context(uncompiled(site.model, site.wrapper))
        stack.callback(site.entry.register_forward_pre_hook(enter, with_kwargs=True).remove)
        if path is not None:
            stack.callback(path.register_forward_hook(bend).remove)
        stack.enter_context(at_end(site, branch))
        if site.is_inner and after is not None:
            hook = after.register_forward_hook(lambda _, __, out: leave(out))
        elif then is not None:
            hook = then.register_forward_pre_hook(lambda _, args, kwargs: leave(signal_of(args, kwargs)), with_kwargs=True)
        else:
            hook = site.block.register_forward_hook(lambda _, __, out: leave(signal_in(out)))
        stack.callback(hook.remove)
        yield


@contextmanager
def split_gradients(
    site: Site, see: Callable[[GradientSplit], None] | None, through: Way | Callable[[], Way]
) -> Iterator[None]:
    """``Site.gradients``."""
    if not site.splits_gradient:
        raise DeepresError(f"site {site.name!r}: its two ways begin with the same layer, so they cannot be told apart")
    now: dict[str, Tensor] = {}

    def way_now() -> Way:
        return through() if callable(through) else through

    def arrive(grad: Tensor) -> Tensor:
        """At the input of the block, or of the branch of an inner site."""
        if site.is_inner:
            now["branch"] = grad
            if see is not None:
                see(GradientSplit(now["sum"] + grad, now["sum"], grad))
            return torch.zeros_like(grad) if way_now() == "shortcut" else grad
        shortcut = now["shortcut"] if site.reshapes else now["sum"]
        branch = grad - shortcut
        if see is not None:
            see(GradientSplit(grad, shortcut, branch))
        return {"both": grad, "shortcut": shortcut, "branch": branch}[way_now()]

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = signal_of(args, kwargs)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return None
        if site.is_inner:  # the gradient of both ways arrives at x itself
            x.register_hook(lambda grad: now["branch"] if way_now() == "branch" else grad)
        own = x.view_as(x)  # so that only the gradient that comes through here is seen
        own.register_hook(arrive)
        return exchange(args, kwargs, lambda _: own)

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

    def branch(out: Any) -> None:
        if torch.is_grad_enabled() and signal_in(out).requires_grad:
            signal_in(out).register_hook(keep("sum"))

    path = site.pattern.find(site.block, "shortcut")
    with ExitStack() as stack:
        stack.enter_context(uncompiled(site.model, site.wrapper))
        stack.callback(site.entry.register_forward_pre_hook(enter, with_kwargs=True).remove)
        if site.reshapes and path is not None:
            stack.callback(path.register_forward_pre_hook(bend).remove)
        stack.enter_context(at_end(site, branch))
        yield
