"""The bounds that a server keeps: how much it queues, how long it waits, how large a request may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from deepres.errors import DeepresError


def _unit(name: str, factor: float, kind: type[int] | type[float]) -> PrimitiveConstructorSpec[float]:
    """A number that the command line takes in a unit of its own: ``--wait 2`` is two milliseconds, ``wait`` 0.002 seconds."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=name,
        instance_from_str=lambda given: kind(float(given[0]) * factor),
        is_instance=lambda value: isinstance(value, (int, float)),
        str_from_instance=lambda value: [f"{value / factor:g}"],
    )


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Times in seconds, sizes in bytes and pixels; on the command line in the units that a comment names.

    Raises ``DeepresError`` for values that no server could work with.
    """

    batch: int = 32  # images in one call of the network, at most
    wait: Annotated[float, _unit("MS", 1e-3, float)] = 0.002  # time to wait for images that are being decoded; in milliseconds
    queue: int = 256  # images that may be admitted before a call takes them; more are refused with 503
    timeout: float = 30.0  # seconds from a request's first byte to its answer; 408 while it is received, then 504
    call_timeout: float = 30.0  # seconds that one call of the network may take; then its process is killed and restarted
    body: Annotated[int, _unit("MB", 1e6, int)] = 8_000_000  # size of a request's body; in megabytes
    pixels: Annotated[int, _unit("MP", 1e6, int)] = 50_000_000  # width times height of an image; in megapixels

    def __post_init__(self) -> None:
        for name in ("batch", "queue", "body", "pixels"):
            if getattr(self, name) < 1:
                raise DeepresError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("timeout", "call_timeout"):
            if not getattr(self, name) > 0:
                raise DeepresError(f"{name.replace('_', '-')} is above 0 seconds, not {getattr(self, name):g}")
        if not self.wait >= 0:
            raise DeepresError(f"wait is at least 0, not {self.wait:g}")
