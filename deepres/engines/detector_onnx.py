"""An exported detector, called like the original, by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from deepres.detection import load_detector
from deepres.errors import DeepresError
from deepres.models.exported import open_file


def open_detector(reference: str | Path) -> nn.Module:
    """The detector of a run's folder, a file of `save_detector`, or an ONNX file of `export_detector`, in eval mode.

    Raises ``DeepresError`` for anything else.
    """
    return ExportedDetector(reference) if Path(reference).suffix == ".onnx" else load_detector(reference)


class ExportedDetector(nn.Module):
    """``model(images) -> [{"boxes", "labels", "scores"}, ...]`` with the detector in an ONNX file, image by image.

    Images are tensors (3, H, W) in 0..1 of 8-bit pixels; labels count from 1, as those of ``Detector``.

    Raises ``DeepresError`` for a file that is missing, changed since it was exported, or no detector.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        file = open_file(path)
        if file.header.get("task") != "detection":
            raise DeepresError(f"{path}: not a detector; `deepres export DETECTOR --to onnx` writes them")
        self.file, self.engine = file, file.engine
        self.config = SimpleNamespace(classes=tuple(json.loads(file.header["labels"])))
        self.eval()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0)
            boxes, labels, scores = self.file.call([pixels])
            found.append({"boxes": boxes, "labels": labels + 1, "scores": scores})
        return found
