"""Batch norms over the examples of all processes, and of one process alone where not all of them compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepres.errors import DeepresError
from deepres.nn.fused import ONE_VALUE, FusedNorm, track_statistics


class _SumOfProcesses(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()  # another consumer may hold the same tensor
        dist.all_reduce(total)
        return total


class _Synchronised(_BatchNorm):
    """Batch norm over the examples of all processes, ``(N, C, ...) -> (N, C, ...)``. PyTorch's own needs a GPU.

    Statistics are computed in float32 or better, whatever the type of the input; the output has the input's type.

    Raises ``ValueError`` in training where all processes together have one value per channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return _BatchNorm.forward(self, x)
        self._check_input_dim(x)
        all_but_channels = (0, *range(2, x.ndim))
        shape = (1, -1, *(1,) * (x.ndim - 2))
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = exact.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOfProcesses.apply(torch.cat((exact.sum(all_but_channels), count)))
        count = sums[-1].detach()
        if count < 2:
            raise ValueError(f"{ONE_VALUE} when training, got input size {tuple(x.shape)}")
        mean = sums[:-1] / count
        centred = exact - mean.view(shape)
        var = _SumOfProcesses.apply(centred.square().sum(all_but_channels)) / count
        track_statistics(self, mean, var, count)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            return (centred * (self.weight * scale).view(shape) + self.bias.view(shape)).to(x.dtype)
        return (centred * scale.view(shape)).to(x.dtype)


class SyncBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the examples of all processes."""

    _alone = nn.BatchNorm2d  # the class of the same norm over one process's examples; every class of ``_class`` has it


@cache
def _class(kind: type[_BatchNorm], statistics: type[_BatchNorm]) -> type[_BatchNorm] | None:
    """``kind`` with the batch statistics of the class ``statistics``; None where this cannot be known.

    A class that inherits its forward pass gets that of ``statistics``. timm's ``BatchNormAct2d`` has one of its own, in which an
    activation follows. What the forward pass of any other class does is not known.
    """
    if kind is nn.BatchNorm2d and statistics is _Synchronised:
        return SyncBatchNorm2d
    owner = next(one for one in kind.__mro__ if "forward" in vars(one))
    own: dict[str, Any] = {"_alone": kind, "process_group": None}  # PyTorch's class asks for its group of processes: all
    if owner.__module__.startswith("timm.") and owner.__name__ == "BatchNormAct2d":
        own["forward"] = lambda self, x: self.act(self.drop(statistics.forward(self, x)))
    elif owner is not _BatchNorm:
        return None
    return type(f"Sync{kind.__name__}", (statistics, kind), own)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm see the batch of all processes, in place, and return ``model``. Names and weights stay.

    Raises ``DeepresError`` that names the module, before any is changed, for a class of batch norms with a forward pass of its own.
    """
    statistics = nn.SyncBatchNorm if device.type == "cuda" else _Synchronised
    found: list[tuple[nn.Module, type[_BatchNorm]]] = []
    for name, module in model.named_modules():
        kind = type(module)
        if not issubclass(kind, _BatchNorm) or issubclass(kind, (FusedNorm, nn.SyncBatchNorm, _Synchronised)):
            continue
        made = _class(kind, statistics)  # type: ignore[arg-type]  # mypy takes the classes' __hash__ for that of their modules
        if made is None:
            raise DeepresError(
                f"{name} ({kind.__name__}): a batch norm with a forward pass of its own cannot use the batch of all processes; "
                "train without --sync-norm"
            )
        found.append((module, made))
    for module, made in found:
        module.__class__ = made
    for module in model.modules():
        if isinstance(module, FusedNorm):
            module.synchronised = True
    return model


class _LocalBatchNorm(_BatchNorm):
    """PyTorch's synchronised norm inside ``local_norms``."""

    def _check_input_dim(self, _: Tensor) -> None:
        """Any number of dimensions."""


@contextlib.contextmanager
def local_norms(model: nn.Module) -> Iterator[None]:
    """While open, synchronised norms use this process's examples alone.

    For a forward pass that not all processes make: a synchronised norm would wait for the others for ever.
    """
    norms = [(module, type(module)) for module in model.modules() if isinstance(module, nn.SyncBatchNorm | _Synchronised)]
    fused = [module for module in model.modules() if isinstance(module, FusedNorm) and module.synchronised]
    for module, kind in norms:
        module.__class__ = getattr(kind, "_alone", _LocalBatchNorm)  # type: ignore[arg-type]
    for norm in fused:
        norm.synchronised = False
    try:
        yield
    finally:
        for module, kind in norms:
            module.__class__ = kind
        for norm in fused:
            norm.synchronised = True
