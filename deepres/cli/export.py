"""``deepres export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from deepres.cli.common import keywords, say
from deepres.cli.parsing import BuilderOption
from deepres.engines.options import ExportOptions
from deepres.errors import DeepresError
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
        if self.opset != ExportOptions.opset and self.to != "onnx":
            raise DeepresError(f"--opset is the version of ONNX's operations, which --to {self.to} does not have; leave it out")
        if is_detector(self.model):
            if self.weights is not None or self.size is not None:
                raise DeepresError(
                    f"{self.model}: is a detector, which has weights of its own and is exported for images of any size; leave out "
                    "--weights and --size"
                )
            result = export_detector(self.model, self.to, self.out, **keywords(self, ExportOptions))
        else:
            result = export(self.model, self.to, self.out, **keywords(self, ExportOptions, OpenOptions))
        for line in result.lines():
            say(line)
        return 0
