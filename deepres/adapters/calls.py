"""Arguments and results of blocks: the signal among them, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError


def signal_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The signal among a block's arguments: the first of them."""
    return args[0] if args else next(iter(kwargs.values()))


def signal_in(out: Any) -> Tensor:
    """The signal in a block's result: the result itself, or the first of a tuple."""
    return out[0] if isinstance(out, tuple) else out


def with_signal(out: Any, signal: Tensor) -> Any:
    """A block's result with another signal."""
    return (signal, *out[1:]) if isinstance(out, tuple) else signal


def exchange(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with another signal."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: change(kwargs[name])}


def gather(value: Any, keep: Tensor, rows: int, core: nn.Module | None = None, length: int = 0) -> Any:
    """Rows ``keep`` of every tensor in ``value`` that has a row per example; tuples, lists and dictionaries are gone through.

    Masks and rotary positions come for the whole batch, or with one row for all, which stays. A cache of keys and values,
    whose rows must stay those of the batch, is left out where a sequence of ``length`` begins with this call of ``core``.

    Raises ``DeepresError`` where the sequence continues, since keys and values of the rows that skipped are missing.
    """
    if isinstance(value, Tensor):
        return value.index_select(0, keep) if value.ndim > 0 and len(value) == rows > 1 else value
    if type(value) in (tuple, list):
        return type(value)(gather(one, keep, rows, core, length) for one in value)
    if type(value) is dict:
        return {key: gather(one, keep, rows, core, length) for key, one in value.items()}
    if hasattr(value, "get_seq_length"):
        check_cache(value, core, length)
        return None
    return value


def check_cache(cache: Any, core: nn.Module | None, length: int) -> None:
    """Raise ``DeepresError`` where ``cache`` holds a sequence of earlier calls, of which ``core`` may have skipped some."""
    place = getattr(core, "layer_idx", None)
    held = [int(cache.get_seq_length(i)) for i in range(len(getattr(cache, "layers", ())))]
    if place is None or any(n not in (0, length) for n in held) or any(held[place:]):
        raise DeepresError("a block cannot be bypassed while a cache of keys and values is in use; pass use_cache=False")


def check_caches(args: tuple[Any, ...], kwargs: Mapping[str, Any], core: nn.Module) -> None:
    """``check_cache`` of each cache among the arguments of a call of ``core``, which the whole batch skips."""
    for value in (*args, *kwargs.values()):
        if hasattr(value, "get_seq_length"):
            check_cache(value, core, signal_of(args, kwargs).shape[1])


def kept_rows(skip: Tensor, rows: int, folded: bool) -> Tensor:
    """Indices of the rows that do not skip. Where rows are folded, all rows of an example do as ``skip`` (N,) says of it."""
    if skip.ndim != 1 or not (len(skip) == rows or (folded and len(skip) and rows % len(skip) == 0)):
        what = f"one truth value per example ({rows} rows come in)" if folded else f"one truth value per sample, {rows}"
        raise DeepresError(f"bypass needs {what}, not shape {tuple(skip.shape)}")
    return (~per_row(skip, rows)).nonzero().squeeze(1)


def per_row(values: Tensor, rows: int) -> Tensor:
    """One value per example -> one per row; an example's rows follow one another where rows are folded."""
    return values if len(values) == rows else values.repeat_interleave(rows // len(values))


class ZeroBranch(nn.Module):
    """Stands where a removed branch did its work, and adds nothing."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(signal_of(args, kwargs))
        return (zeros, None) if self.pair else zeros


class PassOn(nn.Module):
    """Stands in front of a removed branch: returns the signal among its arguments."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        signal = signal_of(args, kwargs)
        return (signal, None) if self.pair else signal


@contextmanager
def patched(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
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
