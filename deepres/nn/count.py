"""Parameters, multiply-adds and memory, counted on the real modules while they run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one batch."""

    params: int
    macs: int  # multiply-adds of one example
    saved_bytes: int  # what one example leaves behind for the backward pass, in float32
    param_bytes: int

    def training_bytes(self, batch: int) -> int:
        """Activations, weights, gradients and momentum."""
        return batch * self.saved_bytes + 3 * self.param_bytes


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class saved_bytes:
    """A context that sums the bytes autograd keeps for the backward pass; each storage once, the weights not.

    >>> with saved_bytes(model) as saved: loss = model(x).sum()
    >>> saved.total
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._kept: list[torch.UntypedStorage] = []  # a freed storage's address could come back as another tensor's
        self.total = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(storage)
            self.total += storage.nbytes()
        return tensor.detach()  # a node that held its own output whole would hold itself, and never be freed

    def __enter__(self) -> saved_bytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._kept.clear()


def cost(model: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Count what ``model`` does with an image of ``shape`` (C, H, W), or with a text of (L,) tokens. The model is left as it was."""
    from torch.utils.flop_counter import FlopCounterMode  # which imports Triton, 70 MB of memory that training does not need

    modes = [(module, module.training) for module in model.modules()]
    weight = next(model.parameters())
    model.eval()  # a batch of one cannot be normalised over itself, and running statistics must not move
    try:
        x = torch.zeros(1, *shape, device=weight.device, dtype=torch.int64 if len(shape) == 1 else weight.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            model(x)
        with torch.enable_grad(), saved_bytes(model) as saved:
            model(x)
    finally:
        for module, training in modes:
            module.training = training
    params = parameters(model)
    return Cost(params, flops.get_total_flops() // 2, saved.total, sum(p.nbytes for p in model.parameters()))
