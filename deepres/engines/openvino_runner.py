"""A graph of OpenVINO, compiled for the numbers of inputs that it gets."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepres.engines.engine import Precision, Runner, computes_bf16
from deepres.engines.exporters import need_engine, save_openvino

OPENVINO_FILE = "model.xml"
HINTS = {"float32": "f32", "bf16": "bf16", "int8": "bf16"}  # int8 is in the graph; the hint is for the layers that are not


@cache
def core() -> Any:
    return need_engine("openvino").Core()


class OpenVINORunner(Runner):
    """A model compiled for one batch size, for single inputs when the first comes, and once more for all other sizes.

    ``batch`` None: for all sizes at once.
    """

    def __init__(self, model: Any, batch: int | None, precision: Precision) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self._sizes = {batch, 1} if batch else set()  # sizes worth a compilation of their own
        self._requests: dict[
            int, tuple[Any, list[Tensor] | None]
        ] = {}  # and its outputs, where these keep their place in memory
        self._lock = threading.Lock()  # a request holds its inputs and outputs until the next call
        self._tensor = need_engine("openvino").Tensor
        self._dtypes = [torch.from_numpy(np.empty(0, port.element_type.to_dtype())).dtype for port in model.inputs]
        if batch:
            self._request(batch)

    def _request(self, size: int) -> tuple[Any, list[Tensor] | None]:
        """The compiled model for ``size`` inputs; compiled for any number of them under 0."""
        key = size if size in self._sizes else 0
        if key not in self._requests:
            model = self._reshaped(key) if key else self.model
            request = self._compiled(model, {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
            self._requests[key] = (request, outputs_of(request) if key else None)
        return self._requests[key]

    def _reshaped(self, size: int) -> Any:
        """A copy of the model for ``size`` inputs."""
        model = self.model.clone()
        shapes = (list(port.partial_shape)[1:] for port in model.inputs)
        model.reshape({i: [size, *(side.get_length() for side in shape)] for i, shape in enumerate(shapes)})
        return model

    def _compiled(self, model: Any, settings: Mapping[str, Any]) -> Any:
        hint = HINTS[self.precision]
        if hint == "bf16" and not computes_bf16(torch.device("cpu")):
            hint = "f32"
        threads = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return core().compile_model(model, "CPU", {**threads, **settings})

    def forward(self, x: Tensor) -> Tensor:
        return self.run([x])[0].float()

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All outputs of the graph for all its inputs, each with N rows."""
        # Steps are few and plain: behind a network that has filled the caches, each operation takes ten times as long as alone.
        read = self._readable(inputs)
        size = inputs[0].shape[0]
        with self._lock:
            request, outputs = self._requests.get(size) or self._request(size)
            self._give(request, read)
            request.infer(share_outputs=True)
            return [value.clone() for value in outputs or outputs_of(request)]

    def _readable(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs as the graph reads them in place: of its types, and contiguous. They have to live until the call is over."""
        return [
            x.detach().to(dtype).contiguous() if x.dtype != dtype or x.requires_grad or not x.is_contiguous() else x
            for x, dtype in zip(inputs, self._dtypes, strict=True)
        ]

    def _give(self, request: Any, inputs: Sequence[Tensor]) -> None:
        for i, x in enumerate(inputs):
            request.set_input_tensor(i, self._tensor(x.numpy(), shared_memory=True))

    def precisions(self) -> set[str]:
        """Precisions in which the compiled layers run, as OpenVINO reports them: f32, bf16, i8, u8."""
        operations = next(iter(self._requests.values()))[0].get_compiled_model().get_runtime_model().get_ops()
        return {
            str(one.get_rt_info()["runtimePrecision"].astype(str))
            for one in operations
            if "runtimePrecision" in one.get_rt_info()
        }

    def save(self, folder: Path) -> None:
        save_openvino(self.model, folder / OPENVINO_FILE)


def outputs_of(request: Any) -> list[Tensor]:
    """Views of what a request computes. The next call overwrites them."""
    return [torch.from_numpy(value.data) for value in request.output_tensors]
