"""One epoch: its steps, then validation, the best weights and a checkpoint."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from deepres.errors import DeepresError
from deepres.training.distribute import DistributedContext
from deepres.training.network import has_weights
from deepres.training.norms import train_mode
from deepres.training.progress import Pace, Record, peak_memory

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer


class Interrupted(DeepresError):
    """Ctrl-C or SIGTERM: the run has been saved and can be resumed."""

    exit_code = 1


class Resumable(Protocol):
    """The part of a trainer that ``between_steps`` uses."""

    run: Any  # with ``checkpoint_minutes``
    progress: Any  # with ``done``, the number of finished steps
    context: DistributedContext
    total: int  # steps
    out: Path | None

    def checkpoint(self) -> None: ...


def between_steps(trainer: Resumable, stop: threading.Event, saved: float) -> float:
    """End the run where ``stop`` was set in any process, or write the checkpoint that is due.

    ``saved``: time of the last checkpoint, by ``time.perf_counter``; returns it, or that of a new one.

    Raises ``Interrupted``, with a checkpoint written.
    """
    context = trainer.context
    if context.sum(torch.tensor(int(stop.is_set()), device=context.device)):
        trainer.checkpoint()
        context.barrier()
        how = f"resume with --resume {trainer.out}" if trainer.out else "it had no folder, so nothing was saved"
        raise Interrupted(f"interrupted after step {trainer.progress.done} of {trainer.total}; {how}")
    if time.perf_counter() - saved > 60 * trainer.run.checkpoint_minutes:
        trainer.checkpoint()
        return time.perf_counter()
    return saved


def train_epoch(trainer: Trainer, stop: threading.Event) -> None:
    """Take the steps from where the run is to the end of the epoch, or of the run.

    Raises ``Interrupted``, with a checkpoint written, after the step in which ``stop`` was set in any process.
    """
    progress, loader, context = trainer.progress, trainer.loader, trainer.context
    saved = began = time.perf_counter()
    earlier, waited = progress.seconds, loader.waited
    trainer.pace = Pace()
    # the same for the whole epoch, so from where it began and not from where it is resumed
    side = trainer.recipe.side((progress.done - progress.step) / trainer.total, trainer.data.prepare.size)
    small = -(-trainer.loader.batch // context.world) < trainer.recipe.frozen_norms
    train_mode(trainer.model, freeze_norms=small and has_weights(trainer.run))
    if progress.done >= trainer.total:  # interrupted between the last step and its validation
        return
    for batch in loader.epoch(progress.epoch, progress.step, side):
        trainer.step(batch)
        now = time.perf_counter()
        progress.seconds = earlier + now - began
        trainer.pace = Pace(now - began, loader.waited - waited, trainer.pace.examples + batch.total)
        saved = between_steps(trainer, stop, saved)
        if progress.done >= trainer.total:
            break


def finish_epoch(trainer: Trainer) -> Record:
    """Validate, keep the weights if they are the best so far, tell the callbacks, write a checkpoint."""
    progress = trainer.progress
    loss, wrong, count, norm, steps = progress.sums
    began = time.perf_counter()
    val = trainer.measure("val")
    test = trainer.measure("test").top1 if trainer.run.watch_test else None
    record = Record(
        epoch=progress.epoch + 1,
        step=progress.done,
        lr=trainer.optimizer.param_groups[0]["lr"],
        loss=loss / count,
        train_error=100 * wrong / count,
        val_error=val.top1,
        grad_norm=norm / steps,
        images_per_second=trainer.pace.rate,
        waited=trainer.pace.waited,
        memory=peak_memory(trainer.context.device),
        seconds=progress.seconds + time.perf_counter() - began,
        test_error=test,
        unreadable=trainer.loader.unreadable,
        val_loss=val.loss,
        bits_per_byte=val.bits_per_byte,
        tokens=trainer.data.prepare.size if trainer.data.is_text else 0,
    )
    if progress.gentle:
        progress.gentle = record.train_error > 80
    score = trainer.score(val)
    if score < progress.best:
        progress.best, progress.best_epoch, progress.since_best = score, record.epoch, 0
        trainer.keep_best()
    else:
        progress.since_best += 1
        if trainer.recipe.schedule == "plateau" and progress.since_best > trainer.recipe.patience:
            progress.factor, progress.since_best = progress.factor / 10, 0
    progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, [0.0] * 5
    progress.seconds = record.seconds
    for callback in trainer.callbacks:
        callback.after_epoch(trainer, record)
    trainer.checkpoint()
    return record
