"""``deepres push``."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from deepres.cli.common import keywords, say
from deepres.cli.parsing import BuilderOption
from deepres.models.options import PushOptions


@dataclass(frozen=True, kw_only=True)
class Push(BuilderOption, PushOptions):
    """Write a trained network as a folder for the Hugging Face Hub, or upload it there: weights, configuration and a model card."""

    model: Positional[str]  # a run's folder, a weights file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    to: str  # a new folder, or hf:OWNER/NAME to upload

    def run(self) -> int:
        from deepres.models import push

        for line in push(self.model, self.to, **keywords(self, PushOptions)).lines():
            say(line)
        return 0
