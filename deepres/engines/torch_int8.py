"""int8 in PyTorch: torchao's quantizer for x86 on the captured graph (PT2E), compiled by Inductor with the weights as constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepres.data import Data
from deepres.engines.engine import FixedBatch, computes_bf16
from deepres.engines.exporters import need_engine, quiet
from deepres.engines.int8 import Quantized, calibration_batches, check_rise, error_of, float_error
from deepres.engines.source import Source
from deepres.engines.torch_compiled import TorchRunner

_FILE = "int8.safetensors"
_OBSERVER = "activation_post_process"  # part of the names of what calibration records
CALIBRATION_IMAGES = 128  # training images: observers of PyTorch cost several times the network


class _Graph(nn.Module):
    """A converted graph; layers that are not int8 compute in bf16 where the processor does.

    The graphs of ``torch.export`` refuse ``eval()``, so it does not reach them.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.mixed = computes_bf16(torch.device("cpu"))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            logits: Tensor = self.graph(x)
        return logits

    def train(self, mode: bool = True) -> _Graph:
        return self


class TorchInt8Runner(TorchRunner):
    """A quantized graph, compiled. ``observed``: what calibration recorded, from which the graph can be built again."""

    def __init__(self, graph: nn.Module, observed: dict[str, Tensor]) -> None:
        super().__init__(_Graph(graph), torch.float32, compile=True)
        self.observed = observed

    def save(self, folder: Path) -> None:
        save_file(self.observed, folder / _FILE)


def quantize_torch(
    source: Source, data: Data, *, error: float = 0.3, log: Callable[[str], None] = lambda text: None
) -> Quantized:
    """Quantize a network to int8 for PyTorch, for batches of the shape of ``source.example``.

    Weights and activations of convolutions and linear layers become int8, calibrated on up to 128 images of the training split. The
    error is measured on the validation split.

    Raises ``ErrorRises`` where it rises by more than ``error`` points, and ``DeepresError`` where the training split is too small.
    """
    batches = calibration_batches(source, data, CALIBRATION_IMAGES)
    prepared = _prepared(source)
    log("calibrating int8 of PyTorch")
    with torch.no_grad(), quiet():
        for batch in batches:
            prepared(batch)
    observed = {name: value.clone() for name, value in prepared.state_dict().items() if _OBSERVER in name}
    runner = _converted(prepared, observed, source.example)
    log("measuring the error of PyTorch's int8 on the validation split")
    size = len(source.example)
    before, after = float_error(source, data), error_of(FixedBatch(runner, size), data, size)
    check_rise(before, after, error, data)
    return Quantized(runner, before, after, len(data.val), 0)


def load_torch_int8(folder: Path, source: Source) -> TorchInt8Runner:
    """Build the runner whose ``save`` wrote ``folder``, without calibrating."""
    observed = load_file(folder / _FILE)
    prepared = _prepared(source)
    prepared.load_state_dict(observed, strict=False)
    return _converted(prepared, observed, source.example)


def _prepared(source: Source) -> Any:
    """The captured graph with norms folded and an observer at each input of a layer that becomes int8."""
    pt2e = need_engine("torchao.quantization.pt2e.quantize_pt2e")
    x86 = need_engine("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with quiet():
        return pt2e.prepare_pt2e(source.program.module(), quantizer)


def _converted(prepared: Any, observed: dict[str, Tensor], example: Tensor) -> TorchInt8Runner:
    pt2e = need_engine("torchao.quantization.pt2e.quantize_pt2e")
    with quiet():
        runner = TorchInt8Runner(pt2e.convert_pt2e(prepared), observed).eval()
        for _ in range(2):
            runner(example)
    return runner
