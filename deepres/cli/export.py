"""``deepres export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepres.cli.common import say


@dataclass(frozen=True)
class Export:
    """Export a trained network to a file of another engine, checked there against the original."""

    model: Positional[str]  # a run's folder, a weights file, a ghost's folder, torchvision.models:NAME, timm:NAME, hf:FOLDER
    to: Literal["onnx", "openvino", "torch-export", "aoti"] = "onnx"  # aoti: a package for C++ on this kind of processor
    out: Path | None = None  # the file [the network's name, with .onnx, .xml or .pt2]
    data: str | None = None  # compare on the validation images of these data [windows of two photographs]
    opset: int = 20  # of ONNX
    size: int | None = None  # side of the input in pixels [what the network was trained with]
    weights: Path | None = None  # a checkpoint for a network that is built by name

    def run(self) -> int:
        from deepres.engines import export

        result = export(self.model, self.to, self.out, data=self.data, opset=self.opset, size=self.size, weights=self.weights)
        for line in result.lines():
            say(line)
        return 0
