"""Importance of blocks: the rise of the training loss without each, and the sizes of their residuals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import find_blocks, logits_of
from deepres.shrinking.press import Press
from deepres.training import Trainer
from deepres.training.norms import frozen_norm_statistics

SCORE_EXAMPLES = 256  # training examples on which importance is measured


@torch.no_grad()
def block_importance(trainer: Trainer, pressing: Press, candidates: Sequence[int]) -> tuple[dict[int, float], dict[int, float]]:
    """(rise of the training loss without the block in nats, size of its residual), each by the block's index.

    Both are means over a few training batches in training mode, the same in all processes. The network is left unchanged.
    """
    model = trainer.model
    before, was = pressing.wanted, model.training
    batches = list(trainer.loader.some(SCORE_EXAMPLES, trainer.progress.epoch))
    found = torch.zeros(2, len(candidates), dtype=torch.float64)  # rises and sizes
    model.train()
    try:
        for batch in batches:
            images = trainer.to_layout(batch.images)
            with frozen_norm_statistics(model), torch.random.fork_rng(), trainer.speed.autocast(images.device):
                pressing.wanted = set(candidates)
                whole = _loss(model, images, batch.labels)
                found[1] += torch.tensor([float(pressing.size(i) or 0) for i in candidates])
                pressing.clear()
                pressing.wanted = set()
                for place, i in enumerate(candidates):
                    with pressing.without(i):
                        found[0, place] += _loss(model, images, batch.labels) - whole
    finally:
        model.train(was)
        pressing.wanted = before
        pressing.clear()
    context = trainer.context
    rises, sizes = (context.sum(found.to(context.device)) / (context.world * len(batches))).tolist()
    return dict(zip(candidates, rises, strict=True)), dict(zip(candidates, sizes, strict=True))


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    torch.manual_seed(0)  # the same dropout with and without a block
    return float(F.cross_entropy(logits_of(model, images).flatten(0, -2).float(), labels.flatten()))


@torch.no_grad()
def residual_sizes(model: nn.Module, inputs: Tensor, pressing: Press | None = None) -> list[float]:
    """Size of each block's residual relative to its shortcut in eval mode. ``pressing``: the hooks in place, if there are any."""
    own = Press(find_blocks(model)) if pressing is None else pressing
    off = own.on() if pressing is None else None
    was, before = model.training, own.wanted
    own.wanted = set(range(len(own.units)))
    model.eval()
    logits_of(model, inputs)
    model.train(was)
    sizes = [float(size) if (size := own.size(i)) is not None else 0.0 for i in range(len(own.units))]
    own.wanted = before
    own.clear()
    if off is not None:
        off()
    return sizes
