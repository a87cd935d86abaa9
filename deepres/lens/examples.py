"""The examples of a split that a network is looked at with: always the same ones, drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.data import Data, Loader, Prepare, Resident, Split, UnreadableImage, open_image, seeded


def pixels_of(split: Split, prepare: Prepare, i: int) -> Tensor:
    """Example i of ``split`` as bytes (C, H, W): as a loader has it, which takes the next image for one that cannot be read.

    Raises ``UnreadableImage`` if no image can be read.
    """
    if isinstance(split, Resident):
        return split.pixels[i]
    for item in (*split.items[i:], *split.items[:i]):
        try:
            return prepare.image(open_image(item.read(), prepare.channels))
        except (UnreadableImage, OSError):
            continue
    raise UnreadableImage("none of the images of the split can be read")


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
        self.taken = self.split.take(self.chosen)

    def batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Batches (N, C, H, W) of images with labels (N,), or of images alone."""
        loader = Loader(self.taken, self.data.prepare, min(batch, self.count), shuffle=False, device=self.device)
        for step in loader.epoch(0):
            if len(step.labels):
                yield (step.images, step.labels) if self.labelled else step.images

    def pixels(self, i: int) -> Tensor:
        """The i-th example as bytes (C, H, W)."""
        return pixels_of(self.taken, self.data.prepare, i)
