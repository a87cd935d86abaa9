"""``norm_act``: act(norm(x) * weight + bias [+ shortcut]) as one operation, forward and backward.

Batch norm, the residual sum and the ReLU each read and write the whole activation in PyTorch. Together they need two reads of the
input and one write forward, and two reads of the input and the gradient and one or two writes backward; what is saved for the backward
pass is the input and two numbers a channel, from which the ReLU's mask follows. Where a shortcut was added, the mask is the output's,
which is read once.

Two operations are registered, ``deepres::norm_act_v3`` and ``deepres::norm_act_v3_backward``, with fake implementations, so that
``torch.compile`` sees one node each. On a CPU, float32 and bfloat16 activations in channels-last memory run the compiled kernels
(see ``compiled``); everything else runs the same formulas eagerly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepres.kernels.compiled import library

_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_INPUT = (_POINTER, _COUNT, _COUNT, ctypes.c_int)  # x, places, channels, threads
_NORM = (*[_POINTER] * 4, ctypes.c_float, ctypes.c_int)  # weight, bias, mean, variance, eps, relu
_ARGUMENTS = {
    "statistics": (*_INPUT, _POINTER, _POINTER),
    "apply": (*_INPUT, *_NORM, _POINTER, _POINTER),
    "backward_sums": (*_INPUT, *_NORM, *[_POINTER] * 6),  # gradient, other, y, of_bias, of_weight, kept
    "backward_input": (*_INPUT, *_NORM, *[_POINTER] * 3, ctypes.c_double, _POINTER),
}
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
    return _forward(x, weight, bias, shortcut, eps, relu, synchronised)


# Count the version up when the arguments of the backward pass change: PyTorch keeps compiled graphs on disk by the forward pass alone.
@torch.library.custom_op("deepres::norm_act_v3", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, relu: bool, synchronised: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(x.dtype, torch.float32)
    compiled = _suits(x, shortcut)
    if compiled:
        mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))  # whatever PyTorch's default type is
        _run("statistics", x, mean, variance)
    else:
        variance, mean = torch.var_mean(x.to(exact), _DIMENSIONS, correction=0)
    count = mean.new_full((), x.numel() // x.shape[1])
    if synchronised:
        mean, variance, count = _over_processes(mean, variance, count)
    if compiled:
        y = torch.empty_like(x)
        _run("apply", x, *_floats(weight, bias, mean, variance), eps, relu, _channels_last(shortcut), y)
        return y, mean, variance, count
    y = _on_line(x, weight, bias, mean, variance, eps)
    y = y if shortcut is None else y + shortcut.to(exact)
    return (y.relu() if relu else y).to(x.dtype), mean, variance, count


def _on_line(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """The norm of ``x``, in the type of ``mean``; the same bits forward and backward."""
    scale = weight.to(mean.dtype) * torch.rsqrt(variance + eps)
    return x.to(mean.dtype) * _wide(scale) + _wide(bias.to(mean.dtype) - mean * scale)


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


@torch.library.custom_op("deepres::norm_act_v3_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    relu: bool,
    shortcut: bool,
    synchronised: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight, the bias and the shortcut (which is empty where there is none).

    ``other``: a gradient that is added to ``gradient`` (see ``gradient_sums``). ``y``: the output, where the ReLU's mask does not follow
    from the input.
    """
    exact = mean.dtype
    compiled = _suits(x, gradient)
    keeps = shortcut or other is not None  # the gradient behind the ReLU, for the shortcut and so that it is computed once
    if compiled:
        norm: tuple[Tensor | float, ...] = (*_floats(weight, bias, mean, variance), eps)
        first = _channels_last(gradient)
        of_bias, of_weight = torch.empty_like(mean), torch.empty_like(mean)
        kept = torch.empty_like(x) if keeps else None
        _run("backward_sums", x, *norm, relu, first, _channels_last(other), _channels_last(y), of_bias, of_weight, kept)
    else:
        total = gradient if other is None else gradient + other
        g = total.to(exact)
        if relu:
            g = g * ((_on_line(x, weight, bias, mean, variance, eps) if y is None else y) > 0)
        inverse = torch.rsqrt(variance + eps)
        normal = (x.to(exact) - _wide(mean)) * _wide(inverse)
        of_bias, of_weight = g.sum(_DIMENSIONS), (g * normal).sum(_DIMENSIONS)
    all_bias, all_weight = of_bias, of_weight  # the sums over the batch of all processes
    if synchronised:
        both = torch.stack((of_bias, of_weight))
        dist.all_reduce(both)
        all_bias, all_weight = both
    if compiled:
        of_x = torch.empty_like(x)
        masked, relu = (first, relu) if kept is None else (kept, False)
        _run("backward_input", x, *norm, relu, masked, all_bias, all_weight, count.item(), of_x)
    else:
        of_x = _wide(weight.to(exact) * inverse) * (g - _wide(all_bias / count) - normal * _wide(all_weight / count))
        of_x, kept = of_x.to(x.dtype), g.to(x.dtype, copy=True) if shortcut else None  # an output is no input
    of_shortcut = kept if shortcut and kept is not None else x.new_empty(0)
    return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), of_shortcut


# as they stand in a graph
FORWARD, BACKWARD = torch.ops.deepres.norm_act_v3.default, torch.ops.deepres.norm_act_v3_backward.default


@_backward.register_fake
def _(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
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
    x, weight, bias, shortcut, ctx.eps, ctx.relu, ctx.synchronised = inputs
    ctx.shortcut = shortcut is not None
    # only the mask behind a sum needs y. Where it does not, a block may change y in place, so y must not be kept
    ctx.save_for_backward(x, weight, bias, *output[1:], *([output[0]] if ctx.relu and ctx.shortcut else []))
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    x, *norm = ctx.saved_tensors
    y = norm.pop() if ctx.relu and ctx.shortcut else None
    of_x, of_weight, of_bias, of_shortcut = _backward(
        gradient, None, x, y, *norm, ctx.eps, ctx.relu, ctx.shortcut, ctx.synchronised
    )
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


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    kernel = getattr(library(), f"{name}_{_SUFFIX[dtype]}")
    kernel.argtypes, kernel.restype = _ARGUMENTS[name], None
    return kernel


def _run(name: str, x: Tensor, *values: Tensor | float | None) -> None:
    """Call the kernel ``name`` of the type of ``x``; the values behind ``x`` are those that its arguments name."""
    channels = x.shape[1]
    pointers = (v.data_ptr() if isinstance(v, Tensor) else v for v in values)
    _kernel(name, x.dtype)(x.data_ptr(), x.numel() // channels, channels, torch.get_num_threads(), *pointers)


def _floats(*values: Tensor) -> tuple[Tensor, ...]:
    """Values for each channel as the kernels read them."""
    return tuple(v.to(torch.float32).contiguous() for v in values)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.contiguous(memory_format=torch.channels_last)


def _wide(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1)."""
    return values[:, None, None]
