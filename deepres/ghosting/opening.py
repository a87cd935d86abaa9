"""A ghost's folder as an opened network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
