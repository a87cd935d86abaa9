"""Engines of NVIDIA GPUs: CUDA graphs, and TensorRT through torch-tensorrt."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from deepres.engines.engine import DTYPES, Engine, FixedBatch, Precision, Runner
from deepres.engines.source import ChannelsLast, Source, channels_last
from deepres.engines.torch_compiled import low_precision

_WARMUP = 3  # calls on a side stream before a capture, in which libraries choose algorithms and allocate


class _Captured(nn.Module):
    """The kernels of one call, launched as one. Input and output keep their places in memory."""

    def __init__(self, net: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net  # its weights must outlive the graph
        self.input = channels_last(example.to(dtype) if example.is_floating_point() else example).clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(self.input.device):  # streams and captures are those of the current device
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARMUP):
                    net(self.input)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.output: Tensor = net(self.input).float()

    def forward(self, x: Tensor) -> Tensor:
        self.input.copy_(x)
        self.graph.replay()
        return self.output.clone()


class CudaGraphs(Engine):
    """Norms folded, the kernels of a call recorded once and launched together: no time is lost between small layers."""

    name = "cuda-graphs"
    devices = ("cuda",)

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32", "bf16", "fp16")

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        net = low_precision(source.folded, DTYPES[precision])
        return FixedBatch(_Captured(net, example, DTYPES[precision]), len(example)).eval()


class TensorRT(Engine):
    """NVIDIA's compiler."""

    name = "tensorrt"
    package = "torch_tensorrt"
    extra = "torch-tensorrt"
    devices = ("cuda",)

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("float32", "bf16", "fp16")

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        dtype = DTYPES[precision]
        net = low_precision(source.folded, dtype)
        dtype = dtype if example.is_floating_point() else example.dtype
        built = importlib.import_module("torch_tensorrt").compile(
            net, ir="dynamo", inputs=[channels_last(example.to(dtype))], use_explicit_typing=True, truncate_double=True
        )
        return FixedBatch(_Cast(ChannelsLast(built), dtype), len(example)).eval()


class _Cast(nn.Module):
    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net(x.to(self.dtype)).float()
