"""Models that ``torch.compile`` compiled: their code was traced without hooks and ignores those that are set later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from deepres.adapters.calls import patched

_INNER = "_orig_mod"  # the child that holds the module as written, in the wrapper that ``torch.compile`` returns


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped; ``model`` itself where it is no such wrapper."""
    return model.get_submodule(_INNER) if _INNER in model._modules else model


def is_inside_compiled(path: str) -> bool:
    """Return whether the module at ``path`` stands inside a part of the model that ``torch.compile`` wrapped."""
    return _INNER in path.split(".")


def as_written(model: nn.Module) -> nn.Module:
    """``model`` without any wrapper of ``torch.compile`` around it or, exchanged in place, around its parts."""
    model = unwrapped(model)
    for path, module in list(model.named_modules()):
        if _INNER in module._modules:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, as_written(module))
    return model


@contextmanager
def uncompiled(model: nn.Module, wrapper: nn.Module | None = None) -> Iterator[None]:
    """While open, what ``torch.compile`` made of ``model`` or of its modules runs as written, so that hooks are called."""
    with ExitStack() as stack:
        for module in (*([] if wrapper is None else [wrapper]), *model.modules()):
            if _INNER in module._modules:
                stack.enter_context(patched(module, unwrapped(module).__call__))
            if module.__dict__.get("_compiled_call_impl") is not None:  # by Module.compile()
                compiled, module._compiled_call_impl = module._compiled_call_impl, None
                stack.callback(setattr, module, "_compiled_call_impl", compiled)
        yield
