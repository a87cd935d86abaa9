"""``optimize``: the same network, as fast as this machine runs it."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode with every batch norm folded into the convolution before it.

    Pairs are found in the traced graph, so any module that ``torch.fx`` can trace is served; another comes back unfolded.
    """
    model = copy.deepcopy(model).eval()
    try:
        graph = torch.fx.symbolic_trace(model)
    except Exception:  # control flow that depends on data
        return model
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = modules.get(str(before.target)), modules[str(node.target)]
        if type(conv) is not nn.Conv2d or not norm.track_running_stats:
            continue
        parent, _, name = str(before.target).rpartition(".")
        fused = fuse_conv_bn_eval(conv, norm)
        setattr(graph.get_submodule(parent), name, fused)
        modules[str(before.target)] = fused
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


class _Exactly(nn.Module):
    """A layer computed in float32 inside a low-precision network: logits rounded to 8 bits would tie where they do not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())


def _low_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``model`` in ``dtype``, but for its last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    model = model.to(dtype)
    if linear and dtype != torch.float32:
        model.set_submodule(linear[-1], _Exactly(copy.deepcopy(model.get_submodule(linear[-1])).float()))
    return model


# standard deviations of what low precision adds to the difference of two logits: closer ones may be in the wrong order
SURE = 4.0


class Optimized(nn.Module):
    """A frozen network for inference. Called like the original; takes and gives float32.

    Where there is an ``exact`` network, inputs whose two best logits are closer than ``margin`` go through it; the margin is what the two
    networks differed by on the first images, ``SURE`` standard deviations of it. The first call with images of a new shape compiles
    for it, which takes a minute for ResNet-50.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, compile: bool, exact: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self.exact = exact
        self.margin: float | None = None
        self.dtype = dtype
        self._call: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False) if compile else net
        self._compiles = compile
        self._shapes: set[torch.Size] = set()

    def forward(self, x: Tensor) -> Tensor:
        low = x.to(self.dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            new = self._compiles and low.shape not in self._shapes
            logits = (self._first(low) if new else self._call(low)).float()
            return logits if self.exact is None else self._settled(logits, x)

    def _settled(self, logits: Tensor, x: Tensor) -> Tensor:
        """``logits``, those of close calls from the exact network."""
        if logits.ndim != 2 or logits.shape[1] < 2:
            return logits
        if self.margin is None:
            noise = logits[:64] - self._exactly(x[:64])
            self.margin = SURE * math.sqrt(2) * float((noise - noise.mean(1, keepdim=True)).square().mean().sqrt())
        best = logits.topk(2).values
        close = (best[:, 0] - best[:, 1] < self.margin).nonzero()[:, 0]
        if not len(close):
            return logits
        return logits.index_copy(0, close, self._exactly(x[close]))

    def _exactly(self, x: Tensor) -> Tensor:
        assert self.exact is not None
        logits: Tensor = self.exact(x.to(torch.float32, memory_format=torch.channels_last))
        return logits

    def _first(self, x: Tensor) -> Tensor:
        """Compile with the weights as constants, so that they are laid out for the processor beforehand."""
        from torch._inductor import config

        with config.patch(freezing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self._call(x)
        self._shapes.add(x.shape)
        return out

    def train(self, mode: bool = True) -> Optimized:
        """Stays in eval mode: folded norms and frozen weights cannot be trained."""
        if mode:
            raise RuntimeError("an optimized network is for inference only; train the original")
        return super().train(False)


def optimize(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = True,
    settle: bool | None = None,
) -> Optimized:
    """The same network for inference only: norms folded in float32, low-precision weights, channels-last, compiled.

    The classifier, its last linear layer, stays float32; it costs next to nothing and keeps close calls as they are.

    ``example``: images as the network will get them, (N, C, H, W), to compile at once; else the first call compiles.
    ``dtype``: default bfloat16 where the processor computes it, else float32. ``settle``: in low precision, an input whose two best
    logits are too close to tell apart is computed again in float32, so that the answer is the original's. It keeps the float32 weights
    too, and how close that is, is measured on ``example``, or on the first call's images. Default: on a CPU, where looking at the
    logits waits for nothing. ``model`` is left as it was.
    """
    device = next(model.parameters()).device
    if dtype is None:
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        dtype = torch.bfloat16 if fast else torch.float32
    folded = fold_norms(model).to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    settle = settle if settle is not None else device.type == "cpu"
    exact = copy.deepcopy(folded) if settle and dtype != torch.float32 else None
    net = _low_precision(folded, dtype).to(memory_format=torch.channels_last)
    optimized = Optimized(net, dtype, compile, exact).eval()
    if example is not None:
        for _ in range(2):
            optimized(example.to(device))
    return optimized


@torch.no_grad()
def throughput(model: nn.Module, images: Tensor, *, repeats: int = 5) -> float:
    """Images per second at this batch: the median of ``repeats`` after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        model(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return len(images) / statistics.median(times[2:])
