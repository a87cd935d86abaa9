"""Keyword arguments and attributes under their names of earlier versions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments under old names, with a ``DeprecationWarning``: ``@renamed(old="new")``.

    The decorated function raises ``TypeError`` where an argument is given under both names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        called = function.__qualname__.split(".")[-2] if function.__name__ == "__init__" else function.__name__

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{called}() got {new!r} and its old name {old!r}")
                    message = f"{called}({old}=) is now called {new}=; the old name goes in the next version"
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_fields(**names: str) -> Callable[[type[C]], type[C]]:
    """Let a class take keyword arguments and have attributes under old names, with a ``DeprecationWarning``.

    ``@renamed_fields(old="new")`` stands above ``@dataclass`` or above any class whose ``__init__`` takes ``new``.
    """

    def decorate(cls: type[C]) -> type[C]:
        cls.__init__ = renamed(**names)(cls.__init__)  # type: ignore[method-assign]
        for old, new in names.items():
            setattr(cls, old, _old_attribute(cls.__name__, old, new))
        return cls

    return decorate


def _old_attribute(cls: str, old: str, new: str) -> property:
    def warn() -> None:
        message = f"{cls}.{old} is now called {new}; the old name goes in the next version"
        warnings.warn(message, DeprecationWarning, stacklevel=3)

    def get(self: Any) -> Any:
        warn()
        return getattr(self, new)

    def put(self: Any, value: Any) -> None:
        warn()
        setattr(self, new, value)

    return property(get, put, doc=f"Old name of ``{new}``.")
