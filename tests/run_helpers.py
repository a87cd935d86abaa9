"""Runs in tests: several processes, a callback that ends one as a scheduler or a user does, and a comparison of weights."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

import deepres
from deepres.data import Batch
from deepres.models import read_checkpoint
from deepres.training import Trainer


def torchrun(*program: str, world: int = 2, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``program``, a script or ``-m`` and a module, with its arguments in ``world`` processes, which can import this module too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(port)]
    done = subprocess.run(
        [*command, *program],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        timeout=240,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


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
