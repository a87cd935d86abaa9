"""``deepres serve``."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from deepres.cli.common import keywords
from deepres.cli.parsing import BuilderOption
from deepres.serve.options import ServeOptions


@dataclass(frozen=True, kw_only=True)
class Serve(BuilderOption, ServeOptions):
    """Answer images over HTTP with a trained network or a ghost, until stopped."""

    model: Positional[str]  # a run, a file, a ghost's folder, or a reference such as torchvision.models:resnet50

    def run(self) -> int:
        from deepres.serve import serve

        return serve(self.model, **keywords(self, ServeOptions))
