"""An exported detector, called like the original, by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from deepres.detection import load_detector
from deepres.errors import DeepresError
from deepres.models.exported import _check_bytes, _engine


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
        path = Path(path)
        if not path.is_file():
            raise DeepresError(f"{path}: no such file")
        runtime = _engine("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's own kinds
            raise DeepresError(f"{path}: cannot be opened, so it is damaged or of another version") from error
        header = session.get_modelmeta().custom_metadata_map
        _check_bytes(path, header)
        self.engine = f"ONNX Runtime {runtime.__version__}"
        if header.get("task") != "detection":
            raise DeepresError(f"{path}: not a detector; `deepres export DETECTOR --to onnx` writes them")
        self.session, self.header = session, header
        self.config = SimpleNamespace(classes=tuple(json.loads(header["labels"])))
        self.eval()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            boxes, labels, scores = map(torch.from_numpy, self.session.run(None, {"image": pixels}))
            found.append({"boxes": boxes, "labels": labels + 1, "scores": scores})
        return found
