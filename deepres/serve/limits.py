"""The bounds that a server keeps: how much it queues, how long it waits, how large a request may be."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.errors import DeepresError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Times in seconds, sizes in bytes and pixels.

    Raises ``DeepresError`` for values that no server could work with.
    """

    batch: int = 32  # images in one call of the network, at most
    wait: float = 0.002  # seconds to wait for more images before a call
    queue: int = 256  # images that may be admitted before a call takes them; more are refused with 503
    timeout: float = 30.0  # seconds from a request's first byte to its answer; 408 while it is received, then 504
    call_timeout: float = 30.0  # seconds that one call of the network may take; then its process is killed and restarted
    body: int = 8_000_000  # bytes of a request's body
    pixels: int = 50_000_000  # pixels of an image, width times height

    def __post_init__(self) -> None:
        for name in ("batch", "queue", "body", "pixels"):
            if getattr(self, name) < 1:
                raise DeepresError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("timeout", "call_timeout"):
            if not getattr(self, name) > 0:
                raise DeepresError(f"{name.replace('_', '-')} is above 0 seconds, not {getattr(self, name):g}")
        if not self.wait >= 0:
            raise DeepresError(f"wait is at least 0, not {self.wait:g}")
