"""Images of a data set as a network gets them."""

from __future__ import annotations

import torch
from torch import Tensor

from deepres.data import Data, Loader, Prepare, Split

COUNT = 256  # validation images that answers are compared on


def some_inputs(split: Split, prepare: Prepare, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, C, H, W) or (N, L) and labels of at most ``count`` examples, drawn from all of the split."""
    generator = torch.Generator().manual_seed(seed)
    chosen = split.take(torch.randperm(len(split), generator=generator)[:count])
    loader = Loader(chosen, prepare, min(count, 64), shuffle=False)
    steps = list(loader.epoch(0))
    return torch.cat([step.images for step in steps]), torch.cat([step.labels for step in steps])


def validation_images(data: Data, *, at_least: int, count: int = COUNT) -> Tensor:
    """Inputs of the validation split, repeated where there are fewer than ``at_least``."""
    images, _ = some_inputs(data.val, data.prepare, max(count, at_least))
    times = -(-at_least // len(images))
    return images.repeat(times, *[1] * (images.ndim - 1))
