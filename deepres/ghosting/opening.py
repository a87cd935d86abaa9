"""A ghost's folder as an opened network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from deepres.ghosting.make import HEADS, load_ghost
from deepres.models import OpenedModel, annotate, open_model


def is_ghost(reference: str | Path) -> bool:
    """Return whether ``reference`` is the folder of a ghost."""
    return (Path(reference) / HEADS).is_file()


def open_ghost(folder: str | Path) -> OpenedModel:
    """Open the ghost in ``folder``, with the classes and the preparation of images that were saved with it.

    Raises ``DeepresError`` as ``load_ghost`` does.
    """
    ghost, noted = load_ghost(folder)
    annotate(ghost, **noted)
    return dataclasses.replace(open_model(ghost), name=Path(folder).resolve().name)


def ghost_or_reference(reference: str | Path) -> nn.Module | str | Path:
    """The ghost, where ``reference`` is the folder of one; else ``reference`` itself, for ``open_model``, which would open the whole
    network in a ghost's folder.

    Raises ``DeepresError`` as ``load_ghost`` does.
    """
    return open_ghost(reference).model if is_ghost(reference) else reference
