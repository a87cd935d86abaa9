"""``deepres serve``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Serve:
    """Answer images over HTTP with a trained network or a ghost, until stopped."""

    model: Positional[str]  # a run, a file, a ghost's folder, or a reference such as torchvision.models:resnet50
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 for all of the machine's
    port: int = 8000  # port to listen at; 0 for a free one
    batch: int = 32  # images that are answered in one call, at most
    wait: float = 2.0  # milliseconds to wait for more images before a call
    queue: int = 256  # images that may wait; more are refused with 503
    timeout: float = 30.0  # seconds from a request's first byte to its answer; 408 while it is received, then 504
    call_timeout: float = 30.0  # seconds that one call of the network may take; then its process is killed and restarted
    body: float = 8.0  # the largest request, MB
    pixels: float = 50.0  # the largest image, millions of pixels
    tighten: bool = False  # under load, a ghost leaves earlier before images queue up
    weights: Path | None = None  # a state_dict for a network that is built by name
    device: str = "auto"  # auto, cpu, cuda

    def run(self) -> int:
        from deepres.serve import Limits, serve

        limits = Limits(
            batch=self.batch,
            wait=self.wait / 1000,
            queue=self.queue,
            timeout=self.timeout,
            call_timeout=self.call_timeout,
            body=int(self.body * 1e6),
            pixels=int(self.pixels * 1e6),
        )
        return serve(
            self.model,
            host=self.host,
            port=self.port,
            limits=limits,
            tighten=self.tighten,
            weights=self.weights,
            device=self.device,
        )
