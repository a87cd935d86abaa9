"""``deepres serve``: the fields of ``Limits`` as options, and where to listen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from deepres.serve.limits import Limits


@dataclass(frozen=True)
class Serve:
    """Answer images over HTTP with a trained network or a ghost, until stopped."""

    model: Positional[str]  # a run, a file, a ghost's folder, or a reference such as torchvision.models:resnet50
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 for all of the machine's
    port: int = 8000  # port to listen at; 0 for a free one
    limits: OmitArgPrefixes[Limits] = field(default_factory=Limits)
    tighten: bool = False  # under load, a ghost leaves earlier before images queue up
    weights: Path | None = None  # a state_dict for a network that is built by name
    device: str = "auto"  # auto, cpu, cuda

    def run(self) -> int:
        from deepres.serve import serve

        return serve(
            self.model,
            host=self.host,
            port=self.port,
            limits=self.limits,
            tighten=self.tighten,
            weights=self.weights,
            device=self.device,
        )
