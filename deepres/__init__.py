"""deepres: deep residual learning, complete.

>>> import deepres
>>> model = deepres.create("resnet56-cifar")
>>> len(deepres.sites(model))
27
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepres.callback import Callback
from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.adapters import Site, register_site, sites
    from deepres.engines import export, optimize
    from deepres.evaluation import evaluate, generate, predict
    from deepres.ghosting import ghost, load_ghost
    from deepres.models import create, from_pretrained, load, push, save, save_pretrained
    from deepres.nn import deepen, names
    from deepres.shrinking import shrink
    from deepres.training import Run, accelerate, resume, train

__version__ = "0.2.0"
__all__ = [
    "Callback",
    "DeepresError",
    "Run",
    "Site",
    "accelerate",
    "create",
    "deepen",
    "evaluate",
    "export",
    "from_pretrained",
    "generate",
    "ghost",
    "load",
    "load_ghost",
    "names",
    "optimize",
    "predict",
    "push",
    "register_site",
    "resume",
    "save",
    "save_pretrained",
    "shrink",
    "sites",
    "train",
]

_PUBLIC = {
    "deepres.nn": ("deepen", "names"),
    "deepres.adapters": ("Site", "register_site", "sites"),
    "deepres.models": ("create", "from_pretrained", "load", "push", "save", "save_pretrained"),
    "deepres.evaluation": ("evaluate", "generate", "predict"),
    "deepres.training": ("Run", "accelerate", "resume", "train"),
    "deepres.shrinking": ("shrink",),
    "deepres.ghosting": ("ghost", "load_ghost"),
    "deepres.engines": ("export", "optimize"),
}
_PACKAGES = (
    "adapters", "data", "detection", "engines", "evaluation", "exits", "ghosting", "kernels", "lens",
    "models", "nn", "paper", "report", "serve", "shrinking", "training",
)  # fmt: skip
_HOME = {name: package for package, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing torch takes seconds, and ``deepres --help`` needs none of it."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"deepres.{name}")
    raise AttributeError(f"module 'deepres' has no attribute {name!r}")
