"""Bounded memory: recompute a stretch of blocks in the backward pass instead of keeping what they made (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepres import kernels
from deepres.errors import DeepresError
from deepres.nn.count import saved_bytes
from deepres.training.heap import give_back
from deepres.training.norms import frozen_norm_statistics

SLACK = 1.1  # of activations: what convolutions take beside them
HEAP_SLACK = 1.25  # the same without the pool of ``deepres.kernels``, with what the C library loses between them
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class RecomputePlan:
    """Which blocks are recomputed. The default recomputes none."""

    length: int = 0  # blocks per group; 0: nothing is recomputed
    kept: int = 0  # blocks at the output end that are kept whole: the backward pass frees them before it recomputes

    def __str__(self) -> str:
        rest = f", the last {self.kept} kept" if self.kept else ""
        return f"blocks recomputed in groups of {self.length}{rest}" if self.length else "nothing recomputed"


class Recompute(nn.Sequential):
    """Blocks that run in groups of ``length``; only what goes into a group is kept for the backward pass.

    The last ``kept`` blocks run as usual. Outputs, gradients and running statistics are those of the plain sequence, to the
    bit.
    """

    length: int = 1
    kept: int = 0

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        blocks = list(self)
        head = len(blocks) - self.kept
        for start in range(0, head, self.length):
            group = nn.Sequential(*blocks[start : min(start + self.length, head)])

            def contexts(
                group: nn.Module = group,
            ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
                return contextlib.nullcontext(), frozen_norm_statistics(group)

            x = checkpoint(group, x, use_reentrant=False, context_fn=contexts, determinism_check="none")
        for block in blocks[head:]:
            x = block(x)
        return x


def _sequences(model: nn.Module) -> list[nn.Sequential]:
    """The outermost sequences of several blocks: our stages, torchvision's and timm's layers."""
    found: list[nn.Sequential] = []
    for name, module in model.named_children():
        # not a subclass with a forward of its own
        exactly = isinstance(module, nn.Sequential) and type(module) in (nn.Sequential, Recompute)
        if isinstance(module, nn.Sequential) and exactly and len(module) > 1 and name not in ("stem", "head", "fc"):
            found.append(module)
        else:
            found += _sequences(module)
    return found


def recompute(model: nn.Module, plan: RecomputePlan) -> None:
    """Make the model's stages run as ``plan`` says; ``RecomputePlan()`` undoes it. Names and weights stay."""
    kept = plan.kept
    for sequence in reversed(_sequences(model)):
        here = min(kept, len(sequence))
        kept -= here
        sequence.__class__ = Recompute if plan.length and here < len(sequence) else nn.Sequential
        if isinstance(sequence, Recompute):
            sequence.length, sequence.kept = plan.length, here


@dataclass(frozen=True)
class Footprint:
    """Bytes that one example keeps for the backward pass of a training step."""

    total: int
    saved: tuple[int, ...]  # by each block
    entered: tuple[int, ...]  # what goes into each block
    sequences: tuple[int, ...]  # blocks in each sequence
    fixed: int = 0  # kept too, but the same for any batch

    def need(self, plan: RecomputePlan) -> int:
        """Bytes at the worst moment: at the end of the forward pass, or while the widest group is recomputed."""
        head = len(self.saved) - plan.kept
        outside = self.total - sum(self.saved)
        inputs, worst, first = 0, 0, 0
        for count in self.sequences:
            end = min(first + count, head)
            for start in range(first, end, plan.length):
                inputs += self.entered[start]
                group = self.saved[start : min(start + plan.length, end)]
                # gradients flow through a block while its activations are there
                worst = max(worst, inputs + sum(group) + 2 * max(group))
            first += count
        return outside + max(worst, inputs + sum(self.saved[head:]))


def footprint(model: nn.Module, shape: tuple[int, int, int], device: torch.device, *, bf16: bool = False) -> Footprint:
    """Measured on the model itself, which is left as it was: with four examples, less what two leave.

    So what does not grow with the batch, such as weights cast to bfloat16, is not taken for activations.
    """
    few, more = (_left_behind(model, torch.zeros(n, *shape, device=device), bf16) for n in (2, 4))
    saved, entered = (tuple((b - a) // 2 for a, b in zip(x, y, strict=True)) for x, y in zip(few[1:], more[1:], strict=True))
    total = (more[0] - few[0]) // 2
    return Footprint(total, saved, entered, tuple(map(len, _sequences(model))), fixed=few[0] - 2 * total)


def _left_behind(model: nn.Module, x: Tensor, bf16: bool) -> tuple[int, list[int], list[int]]:
    """Bytes kept for the backward pass: in all, by each block, and what went into each block."""
    entered, marks, handles = [], [], []
    was = model.training
    model.train()
    low = torch.autocast(x.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    try:
        with torch.enable_grad(), frozen_norm_statistics(model), low, saved_bytes(model) as saved:

            def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                entered.append(inputs[0].nbytes)
                marks.append(saved.total)

            def leave(*_: object) -> None:
                marks.append(saved.total)

            for block in (block for sequence in _sequences(model) for block in sequence):
                handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
            model(x)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    return saved.total, [after - before for before, after in zip(marks[::2], marks[1::2], strict=True)], entered


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device, in bytes, within the limits of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for folder, limit, used, prefix in (
        (CGROUP, "memory.max", "memory.current", ""),
        (CGROUP, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with contextlib.suppress(OSError, ValueError):
            taken = int((folder / used).read_text()) - _file_cache(folder, prefix)
            free = min(free, int((folder / limit).read_text()) - taken)
    return max(free, 0)


def _file_cache(folder: Path, prefix: str) -> int:
    """Bytes of a control group's file cache, which the kernel gives up as soon as memory is asked for."""
    values: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return sum(int(values.get(prefix + key, 0)) for key in ("inactive_file", "active_file"))


def fit_memory(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch: int,
    device: torch.device,
    *,
    limit: int | None = None,
    bf16: bool = False,
    kept: int = 1,
) -> RecomputePlan:
    """Choose as little recomputation as makes a training step fit, and set it.

    ``limit``: the most memory that the whole process may use, in bytes; default: four fifths of what is free. ``kept``: how many
    values the optimizer keeps of each weight.

    Raises ``DeepresError`` when not even the tightest plan fits.
    """
    recompute(model, RecomputePlan())
    measured = footprint(model, shape, device, bf16=bf16)
    import torch._dynamo  # 150 MB that every optimizer imports, and that the limit has to hold

    give_back()  # what measuring left behind in the allocator
    rss = psutil.Process().memory_info().rss if device.type == "cpu" else torch.cuda.memory_allocated(device)
    budget = (limit - rss) if limit is not None else int(available_bytes(device) * 0.8)
    # gradients, the optimizer's state, the batch itself and the convolutions' own scratch
    fixed = measured.fixed + (1 + kept) * sum(p.nbytes for p in model.parameters()) + batch * math.prod(shape) * 4 * 16
    whole = batch * measured.total + fixed
    if whole <= budget:
        return RecomputePlan()
    blocks = len(measured.saved)
    if blocks == 0:
        raise DeepresError(_no_room(whole, budget))

    slack = HEAP_SLACK if device.type == "cpu" and kernels.status().capability is None else SLACK

    def need(plan: RecomputePlan) -> float:
        return slack * batch * measured.need(plan) + fixed

    plans = [RecomputePlan(length) for length in range(1, 2 * math.isqrt(blocks) + 1)]
    tightest = min(plans, key=need)
    if need(tightest) > budget:
        raise DeepresError(_no_room(need(tightest), budget))
    # what is kept at the end adds to the end of the forward pass only, so a tighter group leaves more room for it
    low, high = 0, blocks - 1
    while low < high:
        middle = (low + high + 1) // 2
        if need(RecomputePlan(tightest.length, middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    plan = RecomputePlan(tightest.length, low)
    recompute(model, plan)
    return plan


def _no_room(need: float, budget: float) -> str:
    return (
        f"a training step needs about {need / 2**30:.1f} GiB and {max(budget, 0) / 2**30:.1f} GiB are to be had: "
        "lower --batch, the image --size or the --width, or raise --memory"
    )
