"""PyTorch's own engines: norms folded, low-precision weights, channels-last, run as they are or compiled and frozen."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from deepres.engines.engine import DTYPES, Engine, Precision, Runner, computes_bf16
from deepres.engines.source import Source, channels_last

if TYPE_CHECKING:
    from deepres.data import Data
    from deepres.engines.int8 import Quantized


class _Float32Layer(nn.Module):
    """A layer computed in float32 inside a low-precision network, whose logits would tie if they were rounded to 8 bits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())


def low_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a copy of ``model`` to ``dtype``, except its last linear layer."""
    if dtype == torch.float32:
        return model
    model = copy.deepcopy(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    model = model.to(dtype)
    if linear:
        model.set_submodule(linear[-1], _Float32Layer(copy.deepcopy(model.get_submodule(linear[-1])).float()))
    return model.to(memory_format=torch.channels_last)


class TorchRunner(Runner):
    """A folded network in ``dtype``. Compiled, the first call with inputs of a new shape takes a minute for ResNet-50."""

    def __init__(self, net: nn.Module, dtype: torch.dtype, compile: bool) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self._compiles = compile
        self._call: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False) if compile else net
        self._shapes: set[torch.Size] = set()

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x.to(self.dtype) if x.is_floating_point() else x)
        with torch.no_grad():
            if self._compiles and x.shape not in self._shapes:
                return self._first(x).float()
            return self._call(x).float()

    def _first(self, x: Tensor) -> Tensor:
        """Compile with the weights as constants, so that they are laid out for the processor beforehand."""
        from torch._inductor import config

        with config.patch(freezing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self._call(x)
        self._shapes.add(x.shape)
        return out


class TorchEager(Engine):
    """Norms folded, run layer by layer."""

    name = "torch-eager"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")
    emulated = ("bf16",)
    compiles = False

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32", "bf16") if computes_bf16(device) else ("float32",)

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        runner = TorchRunner(low_precision(source.folded, DTYPES[precision]), DTYPES[precision], self.compiles).eval()
        for _ in range(2 if self.compiles and example.numel() else 0):
            runner(example)
        return runner


class TorchCompiled(TorchEager):
    """Norms folded, compiled with the weights as constants."""

    name = "torch"
    any_batch = False
    devices = ("cpu", "cuda")
    compiles = True

    def missing(self, device: torch.device) -> str:
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")):
            return "torch.compile needs a C++ compiler; install g++"
        return super().missing(device)

    def calibrates(self, device: torch.device) -> bool:
        native = torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()  # int8 products
        return device.type == "cpu" and native and importlib.util.find_spec("torchao") is not None

    def quantize(self, source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
        from deepres.engines.torch_int8 import quantize_torch  # which makes a runner of this file's

        return quantize_torch(source, data, error=error, log=log)

    def load(self, folder: Path, source: Source, precision: Precision) -> Runner | None:
        from deepres.engines.torch_int8 import load_torch_int8

        return load_torch_int8(folder, source) if precision == "int8" else None
