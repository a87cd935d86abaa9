"""Batches in an order that is a function of (seed, epoch), so that a run can be taken up at any step of any epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepres.data.augment import Augment, alternating, draws, lighting, pad_crop_flip, random_view
from deepres.data.crop import pixels
from deepres.data.dataset import Resident, Split, Streamed
from deepres.data.decode import UnreadableImage, open_image
from deepres.data.decode_pool import in_groups, usual_workers
from deepres.data.prepare import Prepare
from deepres.errors import DeepresError

DRAFT = 4  # a JPEG to be cropped exactly is decoded at a fraction of its size only where that leaves 4 pixels for each one


def seeded(*parts: int) -> torch.Generator:
    """A CPU generator whose state depends on all ``parts`` and on nothing else."""
    mixed = 0
    for part in parts:  # splitmix64, so that neighbouring parts give unrelated streams
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class Shard:
    """Which part of each global batch this process takes. (Files of packed images are called tar shards.)"""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """A contiguous part of ``count`` rows, perhaps empty. Neighbours (0, 1), (2, 3), ... stay together, as mixing needs them.

        The first process has as many rows as any other: the running statistics of its norms are those that are saved.
        """
        pairs = -(-count // 2)
        first, last = (-(-pairs * rank // self.world) for rank in (self.rank, self.rank + 1))
        return slice(min(2 * first, count), min(2 * last, count))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images ready for the network, and the size of the global batch that they are a part of."""

    images: Tensor  # float32 (n, C, H, W) on the device; n may be 0 where a batch has fewer examples than there are processes
    labels: Tensor  # (n,)
    total: int  # examples of the global batch, over all processes
    full: bool  # whether it has the usual size; the tail of an epoch has not
    unreadable: int = 0  # images replaced by another because they could not be decoded


@dataclass(frozen=True, eq=False)
class _Views:
    """Decodes and crops one large image, in a thread or process: key (index, epoch, size) -> (uint8 (C, H, W), label, failures)."""

    split: Streamed
    prepare: Prepare
    augment: Augment
    seed: int

    def __call__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
        index, epoch, size = key
        for failed in range(16):
            item = self.split.items[(index + failed) % len(self.split)]
            try:
                view = self._view(item.read(), index, epoch, size)
            except (UnreadableImage, OSError):
                continue
            return pixels(view).numpy(), item.label, failed
        raise UnreadableImage(f"{item.name}: 16 images in a row, up to this one, cannot be read")

    def _view(self, encoded: bytes, index: int, epoch: int, size: int) -> Image.Image:
        if self.augment == "none":
            resize = round(self.prepare.resize * size / self.prepare.size) or size
            image = open_image(encoded, self.split.channels, draft=DRAFT * resize)
            return replace(self.prepare, size=size, resize=resize).fitted(image)
        image = open_image(encoded, self.split.channels, draft=2 * size)
        return random_view(image, self.augment, size, iter(draws(24, torch.tensor([index]), self.seed, 0, epoch)[0].tolist()))


@dataclass(eq=False)
class Loader:
    """Batches of one split. Each example is seen exactly once an epoch, over however many processes.

    When shuffled, a tail of fewer than two examples per process (of which batch norm may not have a spread) borrows from the batch
    before it, where that is large enough.

    Raises ``DeepresError`` for a split without examples, a batch of less than one, and a negative number of workers.
    """

    split: Split
    prepare: Prepare
    batch: int  # global, over all processes
    seed: int = 0
    augment: Augment = "none"
    shuffle: bool = True
    colour: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    share: Shard = field(default_factory=Shard)
    workers: int | None = None  # threads that decode large images, processes above 8 [the cores, at most 8]; 0: none
    processes: bool | None = None  # whether the workers are processes [above 8]
    waited: float = 0.0  # seconds that the consumer waited for data, in all
    unreadable: int = 0

    def __post_init__(self) -> None:
        if not len(self.split):
            raise DeepresError("this split of the data has no examples")
        if self.batch < 1:
            raise DeepresError(f"--batch is the number of examples of a step and at least 1, not {self.batch}")
        if self.workers is not None and self.workers < 0:
            raise DeepresError(f"--workers is a number of threads or processes, or 0 for none, not {self.workers}")
        if isinstance(self.split, Resident):
            self.split = self.split.to(self.device)
        self.batch = min(self.batch, len(self.split))
        self.steps = -(-len(self.split) // self.batch)

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation, the same in every process."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=seeded(self.seed, 1, epoch))

    def _sizes(self) -> list[int]:
        """The number of examples of each batch."""
        sizes = [self.batch] * (len(self.split) // self.batch)
        tail, least = len(self.split) % self.batch, 2 * self.share.world
        if tail:
            sizes.append(tail)
            if self.shuffle and tail < least and self.batch - (least - tail) >= least:
                sizes[-2:] = [self.batch - (least - tail), least]
        return sizes

    def _rows(self, epoch: int, start: int) -> Iterator[tuple[int, Tensor, bool]]:
        batches = self.order(epoch).split(self._sizes())
        for step in range(start, self.steps):
            yield step, batches[step], len(batches[step]) == self.batch

    def epoch(self, epoch: int, start: int = 0, size: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch from step ``start`` on, with views of side ``size`` (default: as prepared)."""
        if isinstance(self.split, Resident):
            yield from self._resident(self.split, epoch, start, size)
        else:
            yield from self._streamed(self.split, epoch, start, size or self.prepare.size)

    def some(self, examples: int, epoch: int = 0) -> Iterator[Batch]:
        """The first batches of an epoch with about so many examples in all, over all processes; at least one batch."""
        return islice(self.epoch(epoch), max(1, round(examples / self.batch)))

    def _finish(self, images: Tensor, epoch: int, rows: Tensor) -> Tensor:
        if self.colour and images.shape[1] == 3:
            images = lighting(images.float() / 255, draws(6, rows, self.seed, 3, epoch)) * 255
        return self.prepare.normalise(images)

    def _resident(self, split: Resident, epoch: int, start: int, size: int | None) -> Iterator[Batch]:
        for _, rows, full in self._rows(epoch, start):
            began = time.perf_counter()
            mine = rows[self.share.of(len(rows))]
            index = mine.to(self.device)
            images = split.pixels[index]
            if self.augment != "none":
                # 4 at 32 pixels (He et al. 2015, section 4.2)
                pad = max(1, round(images.shape[-1] / 8)) if self.augment != "flip" else 0
                random = draws(3, mine, self.seed, 2, epoch)
                if self.augment == "pad-crop-alternating-flip":
                    random[:, 2] = alternating(draws(1, mine, self.seed, 4)[:, 0], epoch)
                images = pad_crop_flip(images, random, pad=pad, flip=self.augment != "pad-crop")
            ready = self._finish(images, epoch, mine)
            if size is not None and size != ready.shape[-1]:
                ready = _interpolated(ready, size)
            labels = split.labels[index].long()  # of a text they are as small as its tokens
            self.waited += time.perf_counter() - began
            yield Batch(ready, labels, len(rows), full)

    def _streamed(self, split: Streamed, epoch: int, start: int, size: int) -> Iterator[Batch]:
        plan = list(self._rows(epoch, start))
        parts = [rows[self.share.of(len(rows))] for _, rows, _ in plan]
        keys = ([(i, epoch, size) for i in part.tolist()] for part in parts)
        workers = usual_workers() if self.workers is None else self.workers
        decoded = in_groups(_Views(split, self.prepare, self.augment, self.seed), keys, workers, processes=self.processes)
        began = time.perf_counter()
        for (_, rows, full), mine in zip(plan, parts, strict=True):
            views = next(decoded)
            images = torch.empty(
                (len(views), split.channels, size, size), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
            )
            for row, (view, _, _) in zip(images, views, strict=True):
                row.copy_(torch.from_numpy(view))
            ready = self._finish(images.to(self.device, non_blocking=True), epoch, mine)
            labels = torch.tensor([label for _, label, _ in views], dtype=torch.int64, device=self.device)
            bad = sum(failed > 0 for _, _, failed in views)
            self.unreadable += bad
            self.waited += time.perf_counter() - began
            yield Batch(ready, labels, len(rows), full, bad)
            began = time.perf_counter()
        decoded.close()


def _interpolated(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, size, size); N may be 0."""
    if not len(images):
        return images.new_empty((0, images.shape[1], size, size))
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
