"""ONNX Runtime on a CPU, in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepres.engines.engine import Engine, Precision, Runner
from deepres.engines.exporters import need_engine, to_onnx
from deepres.engines.source import Source
from deepres.errors import DeepresError

_FILE = "model.onnx"


class ONNXRunner(Runner):
    """An ONNX Runtime session on the CPU."""

    def __init__(self, file: bytes) -> None:
        onnxruntime = need_engine("onnxruntime")
        super().__init__()
        self.file = file
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.input: str = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        found: np.ndarray = self.session.run(None, {self.input: x.contiguous().numpy(force=True)})[0]
        return torch.from_numpy(found).float()

    def save(self, folder: Path) -> None:
        (folder / _FILE).write_bytes(self.file)


class ONNXRuntime(Engine):
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    package = "onnxruntime"

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32",)

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            to_onnx(source.program, source.example, Path(folder) / _FILE, {})
            if len(list(Path(folder).iterdir())) > 1:
                raise DeepresError("ONNX Runtime is not tried for networks above 1.9 GB, whose weights one file cannot hold")
            return ONNXRunner((Path(folder) / _FILE).read_bytes())

    def load(self, folder: Path, source: Source, precision: Precision) -> Runner | None:
        return ONNXRunner((folder / _FILE).read_bytes())
