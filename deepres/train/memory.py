"""Bounded memory: recompute a stretch of blocks in the backward pass instead of keeping what they made (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepres.errors import DeepresError
from deepres.nn.count import saved_bytes

_UNLIMITED = 1 << 60


@contextlib.contextmanager
def _norms_at_rest(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Normalise by the batch as before, but leave the running statistics alone: they have seen this batch once already.

    A momentum of 0 adds nothing; to stop tracking instead would save other tensors than the first pass did.
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Recompute(nn.Sequential):
    """Blocks that run in segments of ``length``; only what goes into a segment is kept for the backward pass.

    Outputs, gradients and running statistics are those of the plain sequence, to the bit.
    """

    length: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        blocks = list(self)
        for start in range(0, len(blocks), self.length):
            segment = nn.Sequential(*blocks[start : start + self.length])
            norms = [m for m in segment.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

            def contexts(
                norms: list[nn.modules.batchnorm._BatchNorm] = norms,
            ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
                return contextlib.nullcontext(), _norms_at_rest(norms)

            x = checkpoint(segment, x, use_reentrant=False, context_fn=contexts, determinism_check="none")
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


def recompute(model: nn.Module, length: int) -> None:
    """Make the model's stages run in recomputed segments of ``length`` blocks; 0 undoes it. Names and weights stay."""
    for sequence in _sequences(model):
        sequence.__class__ = Recompute if length else nn.Sequential
        if length:
            sequence.length = length  # type: ignore[assignment]


def activation_bytes(model: nn.Module, shape: tuple[int, int, int], device: torch.device, *, bf16: bool = False) -> int:
    """What a training step keeps for the backward pass, per example, measured with two examples on the model itself."""
    x = torch.zeros(2, *shape, device=device)
    was = model.training
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    low = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    try:
        with torch.enable_grad(), _norms_at_rest(norms), low, saved_bytes(model) as saved:
            model(x)
    finally:
        model.train(was)
    return saved.total // 2


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device, within the limits of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            base = Path("/sys/fs/cgroup")
            free = min(free, int((base / limit).read_text()) - int((base / used).read_text()))
    return max(free, 0)


def fit(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch: int,
    device: torch.device,
    *,
    limit: int | None = None,
    bf16: bool = False,
) -> int:
    """Choose the segment length so that a training step fits, and set it. Returns it; 0 means that all is kept.

    ``limit``: the most memory that the whole process may use, in bytes; default: four fifths of what is free.

    Raises ``DeepresError`` when not even the tightest choice fits.
    """
    recompute(model, 0)
    rss = psutil.Process().memory_info().rss if device.type == "cpu" else torch.cuda.memory_allocated(device)
    budget = (limit - rss) if limit is not None else int(available_bytes(device) * 0.8)
    weights = sum(p.nbytes for p in model.parameters())
    work = batch * math.prod(shape) * 4 * 16  # the batch itself, and the convolutions' own scratch
    whole = activation_bytes(model, shape, device, bf16=bf16) * batch
    fixed = 2 * weights + work
    if whole + fixed <= budget:
        return 0
    blocks = sum(len(s) for s in _sequences(model))
    if blocks == 0:
        raise DeepresError(_no_room(whole + fixed, budget))
    boundary = batch * _boundary_bytes(model, shape, device) / blocks * (0.5 if bf16 else 1)
    per_block = whole / blocks
    # what stays: one input per segment, and one segment whole; twice that of the widest, first stage
    need = {length: blocks / length * boundary + 2 * length * per_block + fixed for length in range(1, blocks + 1)}
    fits = [length for length, total in need.items() if total <= budget]
    best = math.isqrt(round(blocks * boundary / (2 * per_block))) or 1
    tightest = min(need, key=need.__getitem__)
    if not fits:
        raise DeepresError(_no_room(need[tightest], budget))
    length = min(fits, key=lambda n: abs(n - best))
    recompute(model, length)
    return length


def _boundary_bytes(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> float:
    """Bytes of the inputs of all blocks together, per example."""
    total = 0
    handles = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        total += inputs[0].numel() * 4

    for sequence in _sequences(model):
        handles += [block.register_forward_pre_hook(count) for block in sequence]
    was = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=device))
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    return float(total)


def _no_room(need: float, budget: float) -> str:
    return (
        f"a training step needs about {need / 2**30:.1f} GiB and {max(budget, 0) / 2**30:.1f} GiB are to be had: "
        "lower --batch, the image --size or the --width, or raise --memory"
    )
