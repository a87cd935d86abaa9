"""Messages about the network between the two processes of a server, at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spec:
    """The network to load."""

    reference: str
    weights: str | None = None
    device: str = "auto"
    engine: str = "auto"  # "auto", "none", the name of an engine, or a folder of `deepres optimize --out`
    batch: int = 32  # images of a call, at most
    tighten: bool = False  # whether a ghost's settings are changed under load


@dataclass(frozen=True)
class Facts:
    """Facts about the network that the HTTP process needs."""

    name: str
    classes: tuple[str, ...]
    prepare: dict[str, Any]  # see ``Prepare.from_notes``
    blocks: int  # blocks of a ghost; 0 for any other network
    levels: int  # steps by which a ghost can be tightened
    engine: str = "none"  # engine, precision and answers
    why_not: str = ""  # why a ghost runs in PyTorch, although an engine was not excluded
