"""What `deepres train --lens every=1epoch` costs: one glance against one training step, taking turns."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.common import alternate, record
from benchmarks.training import resident_data, trainer_on
from deepres.lens import Monitor

STEPS = 352  # of an epoch: 45,000 images of CIFAR-10's training split, 128 at a time

if __name__ == "__main__":
    pixels, labels = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (128,))
    trainer = trainer_on("resnet56-cifar", resident_data(pixels, labels, 10), 128, "auto")
    batch = next(trainer.loader.epoch(0))
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor("every=1steps", Path(folder), say=lambda text: None)
        count = iter(range(1_000_000))

        def glance() -> None:
            x = trainer.to_layout(batch.images)
            monitor.look(trainer.model, x, batch.labels, trainer.optimizer, next(count), STEPS)

        times = alternate({"step": lambda: trainer.step(batch), "glance": glance}, repeats=9)
    ratio = statistics.median(b / a for a, b in zip(times["step"], times["glance"], strict=True))
    record(
        "monitor-resnet56",
        {
            "what": f"resnet56-cifar, 32x32, batch 128, --speed {trainer.speed.name}: a glance at all 27 sites against a training step",
            "n": len(times["step"]),
            "step_seconds": round(statistics.median(times["step"]), 4),
            "glance_seconds": round(statistics.median(times["glance"]), 4),
            "glance_in_steps": round(ratio, 3),
            "percent_of_an_epoch": round(100 * ratio / STEPS, 3),
        },
    )
