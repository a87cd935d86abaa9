"""int8 in PyTorch: torchao's quantizer for x86 on the captured graph (PT2E), compiled by Inductor with the weights as constants."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
    """A quantized graph, compiled.

    ``observed``: what calibration recorded, and ``kept``: the layers that are not int8, from which the graph can be built again.
    """

    def __init__(self, graph: nn.Module, observed: dict[str, Tensor], kept: Sequence[str]) -> None:
        super().__init__(_Graph(graph), torch.float32, compile=True)
        self.observed, self.kept = observed, tuple(kept)

    def save(self, folder: Path) -> None:
        try:
            save_file(self.observed, folder / _FILE, metadata={"kept": json.dumps(self.kept)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def quantize_torch(
    source: Source, data: Data, *, error: float = 0.3, log: Callable[[str], None] = lambda text: None
) -> Quantized:
    """Quantize a network to int8 for PyTorch, for batches of the shape of ``source.example``.

    Weights and activations of convolutions and linear layers become int8, calibrated on up to 128 images of the training split. Where
    the top-1 error on the validation split rises by more than ``error`` points, the layers whose outputs int8 distorts most stay in
    bf16, or in float32 where the processor does not compute bf16: 1, 2, 4, ... of them, at most half.

    Raises ``ErrorRises`` where the error still rises by more than ``error``, and ``DeepresError`` where the training split is too small.
    """
    batches = calibration_batches(source, data, CALIBRATION_IMAGES)
    size, before = len(source.example), float_error(source, data)
    for kept in _kept(source, batches):
        log("calibrating int8 of PyTorch")
        runner = _calibrated(source, batches, kept)
        log("measuring the error of PyTorch's int8 on the validation split")
        after = error_of(FixedBatch(runner, size), data, size)
        if after - before <= error:
            break
        log(f"int8 raises the error by {after - before:.2f} points with {len(kept)} layers in higher precision")
    check_rise(before, after, error, data)
    return Quantized(runner, before, after, len(data.val), len(kept))


def load_torch_int8(folder: Path, source: Source) -> TorchInt8Runner:
    """Build the runner whose ``save`` wrote ``folder``, without calibrating."""
    with safe_open(folder / _FILE, "pt") as file:
        kept = json.loads((file.metadata() or {}).get("kept", "[]"))
    observed = load_file(folder / _FILE)
    prepared = _prepared(source, kept)
    prepared.load_state_dict(observed, strict=False)
    return _converted(prepared, observed, kept, source.example)


def _kept(source: Source, batches: Sequence[Tensor]) -> Iterator[list[str]]:
    """The layers to leave in higher precision: none, then the first 1, 2, 4, ... and half of those that int8 distorts most."""
    yield []
    ranked = _by_distortion(source, batches)
    half, count = len(ranked) // 2, 1
    while count < half:
        yield ranked[:count]
        count *= 2
    if half:
        yield ranked[:half]


@torch.no_grad()
def _by_distortion(source: Source, batches: Sequence[Tensor]) -> list[str]:
    """Names of the layers, those first whose output changes most, relative to its size, when its input and weight alone are int8."""
    net = source.folded.net  # named as the network: norms are folded, as in the quantized graph
    assert isinstance(net, nn.Module)
    noise, size = defaultdict[str, float](float), defaultdict[str, float](float)

    def compare(name: str, int8: nn.Module, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        noise[name] += float((int8(_rounded(inputs[0])) - output).square().sum())
        size[name] += float(output.square().sum())

    handles = []
    for name, layer in net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        int8 = copy.deepcopy(layer)
        weight: Tensor = int8.weight
        step = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).clamp_min(1e-12) / 127
        weight.copy_((weight / step).round() * step)
        handles.append(layer.register_forward_hook(partial(compare, name, int8)))
    try:
        for batch in batches:
            source.folded(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(noise, key=lambda name: noise[name] / max(size[name], 1e-12), reverse=True)


def _rounded(x: Tensor) -> Tensor:
    """``x`` in 256 equal steps over its range, which includes zero."""
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-12)
    return (x / step).round() * step


def _calibrated(source: Source, batches: Sequence[Tensor], kept: Sequence[str]) -> TorchInt8Runner:
    prepared = _prepared(source, kept)
    with torch.no_grad(), quiet():
        for batch in batches:
            prepared(batch)
    observed = {name: value.clone() for name, value in prepared.state_dict().items() if _OBSERVER in name}
    return _converted(prepared, observed, kept, source.example)


def _prepared(source: Source, kept: Sequence[str]) -> Any:
    """The captured graph with norms folded and an observer at each input of a layer that becomes int8: all but those ``kept``."""
    pt2e = need_engine("torchao.quantization.pt2e.quantize_pt2e")
    x86 = need_engine("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    for name in kept:
        quantizer.set_module_name_qconfig(f"model.{name}", None)  # `capture` puts the network into a module as `model`
    with quiet():
        return pt2e.prepare_pt2e(source.program.module(), quantizer)


def _converted(prepared: Any, observed: dict[str, Tensor], kept: Sequence[str], example: Tensor) -> TorchInt8Runner:
    pt2e = need_engine("torchao.quantization.pt2e.quantize_pt2e")
    with quiet():
        runner = TorchInt8Runner(pt2e.convert_pt2e(prepared), observed, kept).eval()
        for _ in range(2):
            runner(example)
    return runner
