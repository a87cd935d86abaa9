"""Leave a site's branch out, for the whole batch or for some of its examples, without computing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deepres.adapters.calls import (
    PassOn,
    ZeroBranch,
    check_caches,
    gather,
    kept_rows,
    patched,
    signal_in,
    signal_of,
    with_signal,
)
from deepres.adapters.compiled import uncompiled

if TYPE_CHECKING:
    from deepres.adapters.site import Site


@contextmanager
def bypass(site: Site, skip: Tensor | None) -> Iterator[None]:
    """``Site.bypass``."""
    with uncompiled(site.model, site.wrapper), _bypass_part(site, skip) if site.is_inner else _bypass_block(site, skip):
        yield


@contextmanager
def _bypass_block(site: Site, skip: Tensor | None) -> Iterator[None]:
    original = site.block.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if skip is None:
            return site.without_branch(x)
        keep = kept_rows(skip, len(x), site.folds_rows)
        if len(keep) == len(x):
            return original(x, *args, **kwargs)
        out = site.without_branch(x)
        if len(keep) == 0:
            return out
        own_args, own_kwargs = gather((args, kwargs), keep, len(x))
        computed = original(x.index_select(0, keep), *own_args, **own_kwargs)
        return out.index_copy(0, keep, computed.to(out.dtype))

    with patched(site.block, forward):
        yield


@contextmanager
def _bypass_part(site: Site, skip: Tensor | None) -> Iterator[None]:
    """Rows are gathered before the branch's first module, which may be its core, and scattered, among zeros, behind its core.

    Where the core sees windows as rows, they are scattered behind the branch's end instead, where rows are examples again.
    """
    pattern = site.pattern
    start, core, end = site.entry, site.need("core"), site.end
    first, work, finish = start.forward, core.forward, end.forward
    nothing, pass_on = ZeroBranch(pattern.pair), PassOn(pattern.start_pair)
    rows, keep = 0, None

    def begin(x: Tensor) -> None:
        nonlocal rows, keep
        rows = len(x)
        keep = None if skip is None else kept_rows(skip, rows, site.folds_rows)

    def enter(*args: Any, **kwargs: Any) -> Any:
        x = signal_of(args, kwargs)
        begin(x)
        if keep is None or len(keep) == 0:
            check_caches(args, kwargs, start)
            return pass_on(*args, **kwargs)
        if len(keep) == rows:
            return first(*args, **kwargs)
        own_args, own_kwargs = gather((args, kwargs), keep, rows, start, x.shape[1])
        return first(*own_args, **own_kwargs)

    def compute(*args: Any, **kwargs: Any) -> Any:
        if start is core:
            begin(signal_of(args, kwargs))
        if keep is None or len(keep) == 0:
            check_caches(args, kwargs, core)
            return nothing(*args, **kwargs)
        if len(keep) == rows or pattern.folds:
            return work(*args, **kwargs)
        own_args, own_kwargs = gather((args, kwargs), keep, rows, core, signal_of(args, kwargs).shape[1])
        return scatter(work(*own_args, **own_kwargs))

    def close(*args: Any, **kwargs: Any) -> Any:
        out = finish(*args, **kwargs)
        return out if keep is None or len(keep) in (0, rows) else scatter(out)

    def scatter(out: Any) -> Any:
        signal = signal_in(out)
        filled = signal.new_zeros(rows, *signal.shape[1:]).index_copy(0, keep, signal)  # type: ignore[arg-type]
        return with_signal(out, filled)

    with ExitStack() as stack:
        if start is not core:
            stack.enter_context(patched(start, enter))
        stack.enter_context(patched(core, compute))
        if pattern.folds:
            stack.enter_context(patched(end, close))
        yield
