"""Several processes under ``torchrun``: who am I, who writes, and sums over all."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepres.data import Shard
from deepres.errors import DeepresError, first_line
from deepres.nn.fused import ONE_VALUE, FusedNorm


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that share a run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.world)

    @property
    def is_main(self) -> bool:
        """One process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, value: Tensor | float) -> float:
        """Mean of one number from each process, the same in all of them."""
        if self.world == 1:
            return float(value)
        return float(self.sum(torch.tensor(float(value), dtype=torch.float64, device=self.device))) / self.world

    def broadcast(self, value: str | None) -> str | None:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def broadcast_weights(self, model: nn.Module) -> None:
        """Give the first process's weights and statistics to all."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``"auto"``: a CUDA device if there is one, else the CPU.

    Raises ``DeepresError`` for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeepresError(f"device {name!r} is not on this machine; use --device cpu ({first_line(error)})") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def is_first_process() -> bool:
    """Return whether this process speaks and writes, of those that ``torchrun`` started; it needs not have joined them."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def join_processes(device: str = "auto") -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` started (gloo on CPUs, nccl on GPUs); alone without it.

    Processes that compute on the CPU of one machine share its cores: each takes its part of PyTorch's threads when it joins.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistributedContext(pick_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    mine = pick_device(device, local)
    if not dist.is_initialized():
        try:
            backend = "nccl" if mine.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise DeepresError(
                f"the processes could not meet at {where} ({first_line(error)}); "
                "if the port is in use, give torchrun another --master-port"
            ) from error
        # once for all runs of a process: a second meeting would find the addresses of the first in torchrun's store
        atexit.register(_part)
        if mine.type == "cpu":  # the processes of one machine share its cores
            here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
            torch.set_num_threads(max(1, torch.get_num_threads() // here))
    yield DistributedContext(mine, rank, world)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


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


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the examples of all processes, ``(N, C, H, W) -> (N, C, H, W)``. PyTorch's own needs a GPU.

    Statistics are computed in float32 or better, whatever the type of the input; the output has the input's type.

    Raises ``ValueError`` in training where all processes together have one value per channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = exact.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOfProcesses.apply(torch.cat((exact.sum((0, 2, 3)), count)))
        count = sums[-1].detach()
        if count < 2:
            raise ValueError(f"{ONE_VALUE} when training, got input size {tuple(x.shape)}")
        mean = sums[:-1] / count
        centred = exact - mean.view(1, -1, 1, 1)
        var = _SumOfProcesses.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked or 1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), share)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            return (centred * (self.weight * scale).view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)
        return (centred * scale.view(1, -1, 1, 1)).to(x.dtype)


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What a synchronised norm is inside ``local_norms``."""

    def _check_input_dim(self, _: Tensor) -> None:
        """Any number of dimensions."""


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm see the global batch. Names and weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
        elif isinstance(module, FusedNorm):
            module.synchronised = True
    return model


@contextlib.contextmanager
def local_norms(model: nn.Module) -> Iterator[None]:
    """While open, synchronised norms use this process's examples alone.

    For a forward pass that not all processes make: a synchronised norm would wait for the others for ever.
    """
    norms = [(module, type(module)) for module in model.modules() if isinstance(module, nn.SyncBatchNorm | SyncBatchNorm2d)]
    fused = [module for module in model.modules() if isinstance(module, FusedNorm) and module.synchronised]
    for module, _ in norms:
        module.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    for norm in fused:
        norm.synchronised = False
    try:
        yield
    finally:
        for module, kind in norms:
            module.__class__ = kind
        for norm in fused:
            norm.synchronised = True
