"""OpenVINO on a CPU: converted through ``torch.export``, float32 and bf16."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from deepres.engines.engine import Engine, Precision, Runner, computes_bf16
from deepres.engines.int8 import Quantized, quantize_openvino
from deepres.engines.openvino_runner import OPENVINO_FILE, OpenVINORunner, core
from deepres.engines.openvino_segments import GhostRunner, load_segments, quantize_ghost
from deepres.engines.source import Source
from deepres.ghosting import Ghost

if TYPE_CHECKING:
    from deepres.data import Data


class OpenVINO(Engine):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    package = "openvino"
    takes_exits = True
    runner: ClassVar[type[OpenVINORunner]] = OpenVINORunner

    def calibrates(self, device: torch.device) -> bool:
        return importlib.util.find_spec("nncf") is not None

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32", "bf16") if computes_bf16(device) else ("float32",)

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        if isinstance(source.model, Ghost):
            return GhostRunner(source.segments, len(example), precision, self.runner)
        return self.runner(source.openvino, len(example), precision)

    def exact(self, source: Source, runner: Runner) -> nn.Module | None:
        return None if isinstance(source.model, Ghost) else OpenVINORunner(source.openvino, None, "float32")

    def quantize(self, source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
        quantize = quantize_ghost if isinstance(source.model, Ghost) else quantize_openvino
        return source.quantized(error, partial(quantize, source, data, error=error, log=log))

    def load(self, folder: Path, source: Source, precision: Precision) -> Runner | None:
        if isinstance(source.model, Ghost):
            return GhostRunner(load_segments(folder, source.model), len(source.example), precision, self.runner)
        return self.runner(core().read_model(folder / OPENVINO_FILE), len(source.example), precision)
