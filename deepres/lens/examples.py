"""The examples of a split that a network is looked at with: always the same ones, drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepres.data import Data, Loader, Resident, Split, open_image, seeded


@dataclass(eq=False)
class Examples:
    """Up to ``count`` examples of ``split``, prepared as ``data`` says; with their labels only if ``labelled``."""

    data: Data
    split: Split
    count: int
    device: torch.device
    labelled: bool = True

    def __post_init__(self) -> None:
        self.count = min(self.count, len(self.split))
        self.chosen = torch.randperm(len(self.split), generator=seeded(0))[: self.count].sort().values

    def batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Batches (N, C, H, W) of images with labels (N,), or of images alone."""
        split, size = self.split.take(self.chosen), min(batch, self.count)
        loader = Loader(split, self.data.prepare, size, shuffle=False, device=self.device)
        for step in loader.epoch(0):
            if len(step.labels):
                yield (step.images, step.labels) if self.labelled else step.images

    def pixels(self, i: int) -> Any:
        """The i-th example as bytes (C, H, W)."""
        where = int(self.chosen[i])
        if isinstance(self.split, Resident):
            return self.split.pixels[where]
        prepare = self.data.prepare
        return prepare.image(open_image(self.split.items[where].read(), prepare.channels))
