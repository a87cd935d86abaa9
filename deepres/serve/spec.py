"""Messages about the network between the two processes of a server, at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepres.errors import DeepresError


@dataclass(frozen=True)
class Spec:
    """The network to load."""

    reference: str
    weights: str | None = None
    device: str = "auto"
    engine: str = "auto"  # "auto", "none", the name of an engine, or a folder of `deepres optimize --out`
    batch: int = 32  # images of a call, at most
    tighten: bool = False  # whether a ghost's settings are changed under load
    data: str | None = None  # data whose validation images engines are compared on; None: noise

    def need_pytorch(self, kind: str) -> None:
        """Raises ``DeepresError`` for the options that ``kind``, such as "a detector", has not, since it is served in PyTorch."""
        if self.tighten:
            raise DeepresError(f"--tighten: makes a ghost faster, and this is {kind}; leave --tighten out")
        if self.engine not in ("auto", "none"):
            raise DeepresError(f"--engine {self.engine}: {kind} is served by PyTorch; leave --engine out")
        if self.data is not None:
            raise DeepresError(f"--data: engines are compared on its images, and {kind} is served by PyTorch; leave --data out")


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
