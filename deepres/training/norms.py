"""Running statistics of batch norms: estimated anew, or left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer

_EXAMPLES = 2560


@torch.no_grad()
def estimate_norm_statistics(trainer: Trainer) -> None:
    """Estimate the statistics of all batch norms as plain means over some training batches, the same in all processes.

    Needed after what lies in front of the norms has changed. A network without batch norms is left as it is.
    """
    model = trainer.model
    if not _running_norms(model):
        return
    with torch.random.fork_rng(), trainer.speed.autocast(trainer.context.device):
        torch.manual_seed(0)  # for dropout
        update_bn((trainer.to_layout(batch.images) for batch in trainer.loader.some(_EXAMPLES, trainer.progress.epoch)), model)
    trainer.context.broadcast_weights(model)


def train_mode(model: nn.Module, *, freeze_norms: bool = False) -> None:
    """``model.train()``; with ``freeze_norms`` batch norms go on normalising by their running statistics, and leave these alone."""
    model.train()
    if freeze_norms:
        for norm in _running_norms(model):
            norm.eval()


@contextlib.contextmanager
def frozen_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as before, but leave the running statistics alone: they have seen this batch once already.

    A momentum of 0 adds nothing; to stop tracking instead would save other tensors than the first pass did.
    """
    norms = _running_norms(model)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


@contextlib.contextmanager
def kept_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Put the running statistics back afterwards: of a batch without examples they would become not-a-number."""
    norms = [norm for norm in _running_norms(model) if norm.running_mean is not None and norm.running_var is not None]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, (mean, var) in zip(norms, before, strict=True):
                if not bool(norm.running_var.isfinite().all()):  # type: ignore[union-attr]
                    norm.running_mean.copy_(mean)  # type: ignore[union-attr]
                    norm.running_var.copy_(var)  # type: ignore[union-attr]


def _running_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
