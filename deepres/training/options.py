"""Options that the training of classifiers, language models and detectors shares, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.options import DeviceOption


@dataclass(frozen=True, kw_only=True)
class StepOptions(DeviceOption):
    """Options of a training step. Where they are left out, the recipe's values hold."""

    batch: int | None = None  # examples of a step over all processes [the recipe's]
    lr: float | None = None  # highest learning rate [the recipe's]
    # auto; exact (float32, the same bits every time); bf16-compiled-contiguous; float32 or bf16,
    # alone or followed by -channels-last, -fused, -compiled or -fused-compiled
    speed: str = "auto"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Options of the checkpoints of a run."""

    keep: int = 2  # checkpoints to keep
    checkpoint_minutes: float = 5.0  # minutes between checkpoints inside an epoch; there is one after each epoch too
