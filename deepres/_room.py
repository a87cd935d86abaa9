"""Packages that can be called: ``deepres.sites`` is a package and, as ``deepres.sites(model)``, its main function."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_room(name: str) -> None:
    """Let the package ``name`` pass calls on to the function inside that has its name.

    Importing a package sets it as an attribute of its parent, over whatever stood there: the two must be one object.
    """
    sys.modules[name].__class__ = _Callable
