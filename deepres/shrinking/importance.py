"""Importance of blocks: the rise of the training loss without each block, and the ratios of their residuals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import find_blocks, kept_modes, logits_of
from deepres.shrinking.constraint import ResidualConstraint
from deepres.training import Trainer
from deepres.training.norms import frozen_norm_statistics

IMPORTANCE_EXAMPLES = 256  # training examples on which importance is measured
GREEDY_EXAMPLES = 512  # the same where blocks are chosen one after the other, since each choice rests on those before


@torch.no_grad()
def block_importance(
    trainer: Trainer, constraint: ResidualConstraint, candidates: Sequence[int], examples: int = IMPORTANCE_EXAMPLES
) -> tuple[dict[int, float], dict[int, float]]:
    """(rise of the training loss without the block in nats, residual ratio), each by the block's index.

    Both are means over a few training batches in training mode, the same in all processes. The network is left unchanged.
    """
    model, before = trainer.model, constraint.measured
    batches = list(trainer.loader.some(examples, trainer.progress.epoch))
    found = torch.zeros(2, len(candidates), dtype=torch.float64)  # rises and ratios
    with kept_modes(model):
        model.train()
        try:
            for batch in batches:
                images = trainer.to_layout(batch.images)
                with frozen_norm_statistics(model), torch.random.fork_rng(), trainer.speed.autocast(images.device):
                    constraint.measured = set(candidates)
                    whole = _loss(model, images, batch.labels)
                    found[1] += torch.tensor([float(constraint.ratio(i) or 0) for i in candidates])
                    constraint.clear()
                    constraint.measured = set()
                    for place, i in enumerate(candidates):
                        with constraint.bypassed(i):
                            found[0, place] += _loss(model, images, batch.labels) - whole
        finally:
            constraint.measured = before
            constraint.clear()
    context = trainer.context
    rises, ratios = (context.sum(found.to(context.device)) / (context.world * len(batches))).tolist()
    return dict(zip(candidates, rises, strict=True)), dict(zip(candidates, ratios, strict=True))


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    torch.manual_seed(0)  # the same dropout with and without a block
    return float(F.cross_entropy(logits_of(model, images).flatten(0, -2).float(), labels.flatten()))


@torch.no_grad()
def residual_ratios(model: nn.Module, inputs: Tensor, constraint: ResidualConstraint | None = None) -> list[float]:
    """Residual ratio of each block of ``model`` in eval mode. ``constraint``: the one that is attached to it, if any."""
    own = ResidualConstraint(find_blocks(model)) if constraint is None else constraint
    detach = own.attach() if constraint is None else None
    before = own.measured
    own.measured = set(range(len(own.blocks)))
    with kept_modes(model):
        model.eval()
        logits_of(model, inputs)
    ratios = [float(ratio) if (ratio := own.ratio(i)) is not None else 0.0 for i in range(len(own.blocks))]
    own.measured = before
    own.clear()
    if detach is not None:
        detach()
    return ratios
