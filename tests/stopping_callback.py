"""A callback that ends a run as a scheduler does."""

from __future__ import annotations

import os
import signal

import deepres
from deepres.data import Batch
from deepres.training import Trainer


class Stop(deepres.Callback):
    """Asks the process to end after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        if trainer.progress.done == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
