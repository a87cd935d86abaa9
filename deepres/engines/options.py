"""Options of ``optimize`` and ``export``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions:
    """Options of ``optimize``."""

    engine: tuple[str, ...] = ("auto",)  # auto, or some of: torch, torch-eager, openvino, onnxruntime, cuda-graphs, tensorrt
    # auto: what the processor computes; int8 needs data to calibrate on
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = "auto"
    # exact: inputs that low precision cannot decide are computed again; close: they are not; see docs/optimize.md
    answers: Literal["auto", "exact", "close"] = "auto"
    error: float = 0.3  # points by which int8 may raise the error on the validation split
    seconds: float = 60.0  # time to measure in, at most; engines that are about equally fast take all of it
    again: bool = False  # measure again what was measured and remembered before


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``export``."""

    data: str | None = None  # data whose validation images are compared on [windows of two photographs]
    # version of ONNX's operations; 20 is ONNX 1.15, which ONNX Runtime 1.17 and OpenVINO 2024.0 read, and the first with a
    # grid_sample and a gelu of its own
    opset: int = 20
