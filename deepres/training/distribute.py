"""Several processes under ``torchrun``: who am I, who writes, and sums over all."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepres.data import Shard
from deepres.errors import DeepresError, first_line


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
