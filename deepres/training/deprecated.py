"""Arguments of earlier versions of ``train``, as callbacks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from deepres.callback import Callback

if TYPE_CHECKING:
    from torch import Tensor

    from deepres.data import Batch
    from deepres.training.progress import Record
    from deepres.training.trainer import Trainer


class _Watch(Callback):
    """``watch(model, record)``, after each epoch."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.watch(trainer.model, record)


class _Tap(Callback):
    """``tap(model, images, labels, optimizer, step, steps an epoch)``, before each step, in the main process."""

    def __init__(self, tap: Any) -> None:
        self.tap = tap

    def before_step(self, trainer: Trainer, batch: Batch) -> None:
        if trainer.context.is_main:
            images = trainer.to_layout(batch.images)
            self.tap(trainer.model, images, batch.labels, trainer.optimizer, trainer.progress.done, trainer.loader.steps)


class _Curriculum(Callback):
    """``curriculum``, an object with ``begin``, ``loss``, ``stepped``, ``epoch``, ``state`` and ``restore``."""

    changes_network = True

    def __init__(self, curriculum: Any) -> None:
        self.curriculum = curriculum

    def run_begins(self, trainer: Trainer) -> None:
        self.curriculum.begin(trainer)

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        changed: Tensor = self.curriculum.loss(loss, logits, images, labels)
        return changed

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        trainer.progress.done -= 1  # `stepped` was called before the step was counted
        try:
            self.curriculum.stepped()
        finally:
            trainer.progress.done += 1

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.curriculum.epoch(record)

    def state(self) -> dict[str, Any] | None:
        state: dict[str, Any] | None = self.curriculum.state()
        return state

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        self.curriculum.restore(state)


def callbacks_from(old: dict[str, Any]) -> list[Callback]:
    """Callbacks for the arguments ``watch``, ``tap`` and ``curriculum``. Raises ``TypeError`` for other arguments."""
    made: list[Callback] = []
    for name, value in old.items():
        kind = {"watch": _Watch, "tap": _Tap, "curriculum": _Curriculum}.get(name)
        if kind is None:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}")
        if value is not None:
            warnings.warn(f"train({name}=...) is deprecated: give callbacks=[...]", DeprecationWarning, stacklevel=3)
            made.append(value if isinstance(value, Callback) else kind(value))
    return made
