"""Runs in tests: a callback that ends one as a scheduler or a user does, and a comparison of the weights of two."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

import deepres
from deepres.data import Batch
from deepres.models import read_checkpoint
from deepres.training import Trainer


class Stop(deepres.Callback):
    """Sends the process a signal after a step, by default the one by which schedulers ask it to end."""

    def __init__(self, step: int, sent: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.sent = step, sent

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        if trainer.progress.done == self.step:
            os.kill(os.getpid(), self.sent)


def same_weights(a: Path, b: Path) -> bool:
    """Whether the last weights of two runs are equal to the bit."""
    (one, _), (other, _) = (read_checkpoint(out / "last.safetensors") for out in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
