"""Progress of a run, and its figures by epoch."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

LOG = "log.jsonl"


@dataclass
class Progress:
    """Position of a run; the part of a checkpoint that is neither weights nor optimizer."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the present epoch
    done: int = 0  # finished steps in all
    seconds: float = 0.0
    best: float = math.inf  # lowest validation error so far, %; of a language model the lowest loss, nats
    best_epoch: int = 0
    since_best: int = 0  # epochs, for the plateau schedule
    factor: float = 1.0  # of the rate, after plateaus
    gentle: bool = False  # still warming up by the paper's rule
    # sums over the epoch so far: loss, wrong, examples, gradient norm, steps
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)


@dataclass
class Pace:
    """Speed of the present epoch since this process began it."""

    seconds: float = 0.0
    waited: float = 0.0  # seconds that steps waited for data
    examples: int = 0

    @property
    def rate(self) -> float:
        """Examples per second; 0 before the first step."""
        return self.examples / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Record:
    """Figures of one epoch. Errors in percent, times in seconds, sizes in bytes."""

    epoch: int  # epochs behind
    step: int  # steps behind
    lr: float
    loss: float  # training, mean over the epoch
    train_error: float  # while training, mean over the epoch
    val_error: float
    grad_norm: float  # mean over the epoch
    images_per_second: float
    waited: float  # seconds that steps waited for data
    memory: int  # peak so far of this process, or on its GPU
    seconds: float  # of the run so far, earlier parts included
    test_error: float | None = None  # only if the run watches it
    unreadable: int = 0
    val_loss: float | None = None  # nats; None in logs of earlier versions
    bits_per_byte: float | None = None  # of the validation text, by a language model
    tokens: int = 0  # of an example of text

    def __str__(self) -> str:
        test = f"  test {self.test_error:6.2f} %" if self.test_error is not None else ""
        bad = f"  {self.unreadable} unreadable images replaced" if self.unreadable else ""
        pace = f"{self.images_per_second * (self.tokens or 1):,.0f} {'tokens' if self.tokens else 'images'}/s"
        val = f"{self.val_error:6.2f} %{test}"
        if self.bits_per_byte is not None:
            val = f"loss {self.val_loss:.4f}  {self.bits_per_byte:.4f} bits per byte{test}"
        return f"epoch {self.epoch:3d}  loss {self.loss:.4f}  train {self.train_error:6.2f} %  val {val}  lr {self.lr:<7.2g}  {pace}{bad}"


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process so far, or of its part of a GPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return psutil.Process().memory_info().rss


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run, without a line that a crash cut short."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (Path(folder) / LOG).read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines
