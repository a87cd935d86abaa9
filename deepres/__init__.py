"""deepres: deep residual learning, complete.

>>> import deepres
>>> model = deepres.create("resnet56-cifar")
>>> len(deepres.sites(model))
27
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.evaluate import evaluate, predict
    from deepres.ghost import ghost, load_ghost
    from deepres.kernels import optimize
    from deepres.nn import create, deepen, load, names, save
    from deepres.shrink import shrink
    from deepres.sites import Site, register_site, sites
    from deepres.train import Run, resume, train

__version__ = "0.1.0"
__all__ = [
    "DeepresError",
    "Run",
    "Site",
    "create",
    "deepen",
    "evaluate",
    "ghost",
    "load",
    "load_ghost",
    "names",
    "optimize",
    "predict",
    "register_site",
    "resume",
    "save",
    "shrink",
    "sites",
    "train",
]

_ROOMS = {
    "deepres.nn": ("create", "deepen", "load", "names", "save"),
    "deepres.sites": ("Site", "register_site", "sites"),
    "deepres.shrink": ("shrink",),
    "deepres.ghost": ("ghost", "load_ghost"),
    "deepres.train": ("Run", "resume", "train"),
    "deepres.evaluate": ("evaluate", "predict"),
    "deepres.kernels": ("optimize",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Fetch a public name when it is first used: importing torch takes seconds, and ``deepres --help`` needs none of it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'deepres' has no attribute {name!r}")
