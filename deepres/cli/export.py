"""``deepres export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from deepres.cli.common import keywords, say
from deepres.cli.parsing import BuilderOption
from deepres.engines.options import ExportOptions
from deepres.models.options import OpenOptions


@dataclass(frozen=True, kw_only=True)
class Export(BuilderOption, OpenOptions, ExportOptions):
    """Export a trained network or a detector to a file of another engine, checked there against the original."""

    # a run's folder or a detector's, a weights file, a ghost's folder, torchvision.models:NAME, timm:NAME, hf:FOLDER
    model: Positional[str]
    to: Literal["onnx", "openvino", "torch-export", "aoti"] = "onnx"  # aoti: a package for C++ on this kind of processor
    out: Path | None = None  # the file [the network's name, with .onnx, .xml or .pt2]

    def run(self) -> int:
        from deepres.detection import is_detector
        from deepres.engines import export, export_detector

        result: Any
        if is_detector(self.model):
            result = export_detector(self.model, self.to, self.out, **keywords(self, ExportOptions))
        else:
            result = export(self.model, self.to, self.out, **keywords(self, ExportOptions, OpenOptions))
        for line in result.lines():
            say(line)
        return 0
