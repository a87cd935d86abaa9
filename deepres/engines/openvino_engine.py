"""OpenVINO on a CPU: converted through ``torch.export``, float32 and bf16."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.engines.engine import Engine, Precision, Runner, computes_bf16
from deepres.engines.exporters import need_engine
from deepres.engines.source import Source

if TYPE_CHECKING:
    from deepres.data import Data
    from deepres.engines.int8 import Quantized

_FILE = "model.xml"
HINTS = {"float32": "f32", "bf16": "bf16", "int8": "bf16"}  # int8 is in the graph; the hint is for the layers that are not


@cache
def core() -> Any:
    return need_engine("openvino").Core()


class OpenVINORunner(Runner):
    """A model compiled for one batch size, for single inputs when the first comes, and once more for all other sizes.

    ``shape`` None: for all sizes at once.
    """

    def __init__(self, model: Any, shape: tuple[int, ...] | None, precision: Precision) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self._sizes = {shape[0], 1} if shape else set()  # sizes worth a compilation of their own
        self._requests: dict[int, Any] = {}
        self._lock = threading.Lock()  # a request holds its own outputs until the next call
        if shape:
            self._request(shape[0])

    def _request(self, size: int) -> Any:
        """The compiled model for ``size`` inputs; compiled for any number of them under 0."""
        key = size if size in self._sizes else 0
        if key not in self._requests:
            model = self.model
            if key:
                model = model.clone()
                model.reshape([key, *(side.get_length() for side in list(model.inputs[0].partial_shape)[1:])])
            self._requests[key] = self._compiled(model)
        return self._requests[key]

    def _compiled(self, model: Any) -> Any:
        hint = HINTS[self.precision]
        if hint == "bf16" and not computes_bf16(torch.device("cpu")):
            hint = "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        return core().compile_model(model, "CPU", settings).create_infer_request()

    def forward(self, x: Tensor) -> Tensor:
        with self._lock:
            request = self._request(len(x))
            found = request.infer({0: x.detach().contiguous().numpy()}, share_inputs=True, share_outputs=True)
            return torch.from_numpy(found[0]).float().clone()

    def precisions(self) -> set[str]:
        """Precisions in which the compiled layers run, as OpenVINO reports them: f32, bf16, i8, u8."""
        operations = next(iter(self._requests.values())).get_compiled_model().get_runtime_model().get_ops()
        return {
            str(one.get_rt_info()["runtimePrecision"].astype(str))
            for one in operations
            if "runtimePrecision" in one.get_rt_info()
        }

    def save(self, folder: Path) -> None:
        need_engine("openvino").save_model(self.model, folder / _FILE, compress_to_fp16=False)


class OpenVINO(Engine):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    package = "openvino"

    def calibrates(self, device: torch.device) -> bool:
        return importlib.util.find_spec("nncf") is not None

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32", "bf16") if computes_bf16(device) else ("float32",)

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        return OpenVINORunner(source.openvino, tuple(example.shape), precision)

    def exact(self, source: Source, runner: Runner) -> nn.Module:
        return OpenVINORunner(source.openvino, None, "float32")

    def quantize(self, source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
        from deepres.engines.int8 import quantize_openvino  # which runs what it quantizes, in this engine

        return quantize_openvino(source, data, error=error, log=log)

    def load(self, folder: Path, source: Source, precision: Precision) -> Runner | None:
        return OpenVINORunner(core().read_model(folder / _FILE), tuple(source.example.shape), precision)
