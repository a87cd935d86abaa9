"""One training step: forward, backward, check, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import logits_in
from deepres.data import Batch, mix, seeded
from deepres.training.guard import NonFinite, first_non_finite
from deepres.training.norms import kept_norm_statistics
from deepres.training.optimizer import set_rate

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer


def take_step(trainer: Trainer, batch: Batch) -> None:
    """Train on one batch, of which this process has its share.

    Raises ``NonFinite`` before the weights are changed by a loss or a gradient that is not finite.
    """
    progress, context, recipe = trainer.progress, trainer.context, trainer.recipe
    done = progress.done / trainer.total
    set_rate(trainer.optimizer, trainer.rate(), recipe.momentum_at(done), head_only=done < recipe.head_first)
    for callback in trainer.callbacks:
        callback.before_step(trainer, batch)
    # what a network draws itself (dropout, ...) depends on the seed and the step alone
    torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(trainer.run.seed, 5, progress.done, context.rank))))
    empty = not len(batch.labels)  # fewer examples than processes: this one takes part in the exchange of gradients alone
    with kept_norm_statistics(trainer.model) if empty else contextlib.nullcontext():
        task, logits, images = task_loss(trainer, batch, trainer.forward if batch.full else trainer.eager)
        loss = task
        for callback in trainer.callbacks:
            loss = callback.loss(trainer, loss, logits, images, batch.labels)
        if empty:  # means over nothing
            task, loss = task.nan_to_num(), loss.nan_to_num()

        # DDP averages over processes; the parts of a batch may differ by an example
        weight = len(batch.labels) * context.world / batch.total
        trainer.optimizer.zero_grad(set_to_none=not trainer.keeps_gradients)
        (loss * weight if weight != 1 else loss).backward()
    norm = nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    if recipe.clip:
        nn.utils.clip_grads_with_norm_(trainer.model.parameters(), recipe.clip, norm)

    answers = max(batch.labels.numel() / max(len(batch.labels), 1), 1)  # tokens of an example
    wrong = (logits.detach().argmax(-1) != batch.labels).sum() / answers
    numbers = torch.stack((task.detach() * len(batch.labels), wrong.to(task.dtype), norm.to(task.dtype))).double()
    context.sum(numbers)
    total_loss, total_wrong, total_norm = numbers.tolist()  # the one wait for the device
    if not math.isfinite(total_loss + total_norm):
        _explain(trainer, batch)

    trainer.optimizer.step()
    if trainer.averaged is not None:
        trainer.averaged.update_parameters(trainer.model)
    added = (total_loss, total_wrong, batch.total, total_norm / context.world, 1)
    progress.sums = [a + b for a, b in zip(progress.sums, added, strict=True)]
    progress.step += 1
    progress.done += 1
    if progress.gentle and progress.step % 20 == 0:
        progress.gentle = progress.sums[1] / progress.sums[2] > 0.8
    for callback in trainer.callbacks:
        callback.after_step(trainer, batch)


def task_loss(trainer: Trainer, batch: Batch, forward: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean cross-entropy of the local examples, logits, images as the network saw them)."""
    images, targets, recipe = batch.images, batch.labels, trainer.recipe
    if recipe.mixup or recipe.cutmix:
        generator = seeded(trainer.run.seed, 4, trainer.progress.done)
        hot = F.one_hot(targets, len(trainer.data.classes)).float()
        images, targets = mix(images, hot, generator, mixup=recipe.mixup, cutmix=recipe.cutmix)
    images = trainer.to_layout(images)
    with trainer.speed.autocast(trainer.context.device, keep_casts=not trainer.plan.length):
        logits = logits_in(forward(images)).float()
    rows = logits.flatten(0, -2)  # every token of a language model is an answer of its own
    hard = targets.flatten() if not targets.is_floating_point() else targets
    return F.cross_entropy(rows, hard, label_smoothing=recipe.label_smoothing), logits, images


def _explain(trainer: Trainer, batch: Batch) -> None:
    """Raise ``NonFinite`` with the first module whose output or gradient is not finite."""
    trainer.optimizer.zero_grad()
    where = first_non_finite(trainer.model, lambda: task_loss(trainer, batch, trainer.model)[0])
    raise NonFinite(
        f"training stopped before step {trainer.progress.done + 1}: the loss or its gradient is not finite; {where}; "
        f"lower --lr (now {trainer.rate():g}), or look at the data"
    )
