"""``optimize``: compile a network for this machine, without changing its predictions."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from deepres.deprecation import renamed
from deepres.evaluation.timing import call_times


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution or linear layer before it, in a copy of ``model`` in eval mode.

    Pairs are found in the graph that ``torch.fx`` traces. A model that it cannot trace, or that calls one of its layers more than
    once, so that a norm behind one call would change the others, comes back unfolded.
    """
    model = copy.deepcopy(model).eval()
    try:
        traced = torch.fx.symbolic_trace(model)
    except Exception:  # control flow that depends on data
        return model
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    modules = dict(traced.named_modules())
    if any(times > 1 and any(True for _ in modules[str(name)].parameters()) for name, times in calls.items()):
        return model
    return fuse(traced, inplace=True, no_trace=True).eval()


class _Float32Layer(nn.Module):
    """A layer computed in float32 inside a low-precision network, whose logits would tie if they were rounded to 8 bits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())


def _low_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert ``model`` to ``dtype``, except its last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    model = model.to(dtype)
    if linear and dtype != torch.float32:
        model.set_submodule(linear[-1], _Float32Layer(copy.deepcopy(model.get_submodule(linear[-1])).float()))
    return model


# The error that low precision adds to the difference of two logits is taken for normal; a difference below this many of its
# standard deviations is a close call, whose order may be wrong.
DEVIATIONS = 4.0


class Optimized(nn.Module):
    """A frozen network for inference, called like the original: float32 (N, C, H, W) -> float32 (N, K).

    With an ``exact`` network, close calls are recomputed by it: inputs whose two best logits are closer than ``margin``. The margin is
    ``DEVIATIONS`` standard deviations of the difference between the two networks on the first images. The first call with images of a
    new shape compiles for it, which takes a minute for ResNet-50.
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
            return logits if self.exact is None else self._recompute_close_calls(logits, x)

    def _recompute_close_calls(self, logits: Tensor, x: Tensor) -> Tensor:
        """``logits``, where those of close calls come from the exact network."""
        if logits.ndim != 2 or logits.shape[1] < 2:
            return logits
        if self.margin is None:
            noise = logits[:64] - self._call_exact(x[:64])
            self.margin = DEVIATIONS * math.sqrt(2) * float((noise - noise.mean(1, keepdim=True)).square().mean().sqrt())
        best = logits.topk(2).values
        close = (best[:, 0] - best[:, 1] < self.margin).nonzero()[:, 0]
        if not len(close):
            return logits
        return logits.index_copy(0, close, self._call_exact(x[close]))

    def _call_exact(self, x: Tensor) -> Tensor:
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


@renamed(settle="recompute")
def optimize(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = True,
    recompute: bool | None = None,
) -> Optimized:
    """Make the same network for inference only: norms folded in float32, low-precision weights, channels-last, compiled.

    The classifier, its last linear layer, stays float32: it costs next to nothing, and rounded logits would tie.

    ``example``: images as the network will get them, (N, C, H, W), to compile at once; else the first call compiles.
    ``dtype``: of the weights; default bfloat16 where the processor computes it, else float32. ``recompute``: in low precision, compute
    an input whose two best logits are too close to tell apart once more in float32, so that the predicted class is the original's.
    This keeps the float32 weights too; how close is too close is measured on ``example``, or on the first call's images. Default: on a
    CPU only, as on a GPU looking at the logits would wait for the device. ``settle`` is the old name of ``recompute``.

    ``model`` is left as it was.
    """
    device = next(model.parameters()).device
    if dtype is None:
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        dtype = torch.bfloat16 if fast else torch.float32
    folded = fold_norms(model).to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    recompute = recompute if recompute is not None else device.type == "cpu"
    exact = copy.deepcopy(folded) if recompute and dtype != torch.float32 else None
    net = _low_precision(folded, dtype).to(memory_format=torch.channels_last)
    optimized = Optimized(net, dtype, compile, exact).eval()
    if example is not None:
        for _ in range(2):
            optimized(example.to(device))
    return optimized


@torch.no_grad()
def throughput(model: nn.Module, images: Tensor, *, repeats: int = 5) -> float:
    """Median throughput of ``repeats`` calls, after two to warm up, in images per second."""
    return len(images) / statistics.median(call_times(partial(model, images), images.device, repeats=repeats, warmup=2))
