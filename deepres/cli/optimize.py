"""``deepres optimize``."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True)
class Optimize:
    """Measure how fast a trained network runs as it is and after `deepres.optimize`, on this machine."""

    model: Positional[str]  # a name, a run's folder or a weights file
    size: int | None = None  # side of the input in pixels [32 for CIFAR networks, else 224]
    batch: int = 32  # images of a pass that is timed

    def run(self) -> int:
        import torch

        from deepres import models
        from deepres.engines import optimize, throughput

        opened = models.open_model(self.model)
        model, size = opened.model, self.size or opened.preparation().size
        images = torch.rand(self.batch, opened.spec.channels or 3, size, size)
        before = throughput(model, images)
        fast = optimize(model, images)
        after = throughput(fast, images)
        print(f"as it is {before:,.1f} images/s, optimized {after:,.1f} images/s: {after / before:.2f} x, batch {self.batch}")
        return 0
