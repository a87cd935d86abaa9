"""``norm_act``: act(norm(x) * weight + bias [+ shortcut]) as one operation, forward and backward.

Batch norm, the residual sum and the ReLU each read and write the whole activation in PyTorch. Together they need two reads of the
input and one write forward, and two reads of three tensors and one or two writes backward; what is saved for the backward pass is the
input, the output and two numbers a channel.

Two operations are registered, ``deepres::norm_act`` and ``deepres::norm_act_backward``, with fake implementations, so that
``torch.compile`` sees one node each. On a CPU, float32 and bfloat16 activations in channels-last memory run the compiled kernels
(see ``compiled``); everything else runs the same formulas eagerly.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepres.kernels.compiled import library

_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_DIMENSIONS = (0, 2, 3)  # of the statistics


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None = None,
    *,
    eps: float = 1e-5,
    relu: bool = True,
    synchronised: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise by the batch, scale and shift, add ``shortcut``, activate: (N, C, H, W) -> (N, C, H, W).

    Also returned are the mean and the variance of each channel (C,), and the number of values that they were taken over ().

    ``y = relu((x - mean) / sqrt(variance + eps) * weight + bias + shortcut)`` with the biased variance of each channel over the batch
    (Ioffe and Szegedy 2015, algorithm 1). ``weight`` and ``bias`` are (C,), in float32 or the type of ``x``. The output has the type
    of ``x``; mean, variance and count carry no gradient. ``synchronised``: the batch is that of all processes of
    ``torch.distributed``, of which each has a part, maybe an empty one.
    """
    return torch.ops.deepres.norm_act(x, weight, bias, shortcut, eps, relu, synchronised)


@torch.library.custom_op("deepres::norm_act", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, relu: bool, synchronised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    run = _kernels(x, shortcut)
    if run is None:
        variance, mean = torch.var_mean(x.to(exact), _DIMENSIONS, correction=0)
    else:
        x, shortcut = _channels_last(x), _channels_last(shortcut)
        mean, variance = x.new_empty(x.shape[1], dtype=exact), x.new_empty(x.shape[1], dtype=exact)
        run("statistics", x, *_size(x), mean, variance)
    count = mean.new_tensor(x.numel() // x.shape[1])
    if synchronised:
        mean, variance, count = _over_processes(mean, variance, count)
    scale = weight.to(exact) * torch.rsqrt(variance + eps)
    offset = bias.to(exact) - mean * scale
    if run is None:
        y = x.to(exact) * _wide(scale) + _wide(offset)
        y = y if shortcut is None else y + shortcut.to(exact)
        return (y.relu() if relu else y).to(x.dtype), mean, variance, count
    y = torch.empty_like(x)
    run("apply", x, scale, offset, shortcut, int(relu), *_size(x), y)
    return y, mean, variance, count


def _over_processes(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over the values of all processes, and their number, from each process's own (Chan et al. 1979)."""
    own = torch.cat((mean, variance, count[None])).nan_to_num()  # a process without examples has neither mean nor variance
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    means, variances, counts = torch.stack(every).split((len(mean), len(mean), 1), 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, relu: bool, synchronised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    channels = x.new_empty(x.shape[1], dtype=exact)
    layout = torch.channels_last if _suits(x, shortcut) else torch.preserve_format
    return torch.empty_like(x, memory_format=layout), channels, torch.empty_like(channels), channels.new_empty(())


@torch.library.custom_op("deepres::norm_act_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    relu: bool,
    shortcut: bool,
    synchronised: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight, the bias and the shortcut (which is empty where there is none)."""
    exact = mean.dtype
    inverse = torch.rsqrt(variance + eps)
    run = _kernels(x, gradient)
    if run is None:
        g = gradient.to(exact) * (y > 0) if relu else gradient.to(exact)
        normal = (x.to(exact) - _wide(mean)) * _wide(inverse)
        of_bias, of_weight = g.sum(_DIMENSIONS), (g * normal).sum(_DIMENSIONS)
    else:
        gradient, x, y = _channels_last(gradient), _channels_last(x), _channels_last(y)
        of_bias, of_weight = torch.empty_like(mean), torch.empty_like(mean)
        run("backward_sums", gradient, y, x, mean, inverse, int(relu), *_size(x), of_bias, of_weight)
    sums = torch.stack((of_bias, of_weight))
    if synchronised:
        dist.all_reduce(sums)
    # dx = scale * (g - mean(g) - normal * mean(g * normal)), written as a * g + b * x + d
    a = weight.to(exact) * inverse
    b = -a * inverse * sums[1] / count
    d = -a * sums[0] / count - b * mean
    if run is None:
        of_x = (_wide(a) * g + _wide(b) * x.to(exact) + _wide(d)).to(x.dtype)
        of_shortcut = g.to(x.dtype, copy=True) if shortcut else x.new_empty(0)  # an output may not be an input
    else:
        of_x = torch.empty_like(x)
        of_shortcut = torch.empty_like(x) if shortcut else x.new_empty(0)
        run("backward_input", gradient, y, x, a, b, d, int(relu), *_size(x), of_x, of_shortcut if shortcut else None)
    return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), of_shortcut


@_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    relu: bool,
    shortcut: bool,
    synchronised: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = torch.channels_last if _suits(x, gradient) else torch.preserve_format
    of_x = torch.empty_like(x, memory_format=layout)
    of_shortcut = torch.empty_like(of_x) if shortcut else x.new_empty(0)
    return of_x, torch.empty_like(weight), torch.empty_like(weight), of_shortcut


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, weight, _bias, shortcut, ctx.eps, ctx.relu, ctx.synchronised = inputs
    ctx.shortcut = shortcut is not None
    # only the ReLU's gradient needs y. Without one, a block may add its shortcut to y in place, so y must not be kept
    ctx.save_for_backward(x, output[0] if ctx.relu else x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    arguments = (gradient, *ctx.saved_tensors, ctx.eps, ctx.relu, ctx.shortcut, ctx.synchronised)
    of_x, of_weight, of_bias, of_shortcut = torch.ops.deepres.norm_act_backward(*arguments)
    return of_x, of_weight, of_bias, of_shortcut if ctx.shortcut else None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _suits(x: Tensor, other: Tensor | None) -> bool:
    """Return whether the compiled kernels take this activation: on a CPU, of a type that they have, in channels-last memory."""
    return (
        x.device.type == "cpu"
        and x.dtype in _SUFFIX
        and x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and (other is None or other.dtype == x.dtype)
        and library() is not None
    )


def _kernels(x: Tensor, other: Tensor | None) -> Any:
    """A function that calls a kernel of the activation's type by name; None where it does not suit."""
    if not _suits(x, other):
        return None
    kernels = library()
    assert kernels is not None

    def run(name: str, *values: Tensor | int | None) -> None:
        kernel = getattr(kernels, f"{name}_{_SUFFIX[x.dtype]}")
        kernel(*(ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else v for v in values))

    return run


def _size(x: Tensor) -> tuple[Any, ...]:
    """Places, channels and threads, as the kernels take them."""
    channels = x.shape[1]
    return ctypes.c_int64(x.numel() // channels), ctypes.c_int64(channels), ctypes.c_int(torch.get_num_threads())


def _channels_last(x: Any) -> Any:
    return x.contiguous(memory_format=torch.channels_last) if x is not None else None


def _wide(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1)."""
    return values[:, None, None]
