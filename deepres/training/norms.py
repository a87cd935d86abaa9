"""Batch norms' running statistics, estimated anew after what lies in front of the norms has changed."""

from __future__ import annotations

import torch
from torch import nn

from deepres.adapters import logits_of
from deepres.training import Trainer

EXAMPLES = 2560


@torch.no_grad()
def estimate_norm_statistics(trainer: Trainer) -> None:
    """Take plain means over some training batches, the same in all processes. A network without batch norms is left as it is."""
    model = trainer.model
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    was = model.training
    model.train()
    with torch.random.fork_rng(), trainer.speed.autocast(trainer.context.device):
        torch.manual_seed(0)
        for batch in trainer.loader.some(EXAMPLES, trainer.progress.epoch):
            logits_of(model, trainer.to_layout(batch.images))
    model.train(was)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    trainer.context.broadcast_weights(model)
