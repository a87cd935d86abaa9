"""Batches in an order that is a function of (seed, epoch), so that a run can be taken up at any step of any epoch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepres.data.augment import Augment, lighting, pad_crop_flip, random_view
from deepres.data.dataset import Resident, Split, Streamed
from deepres.data.decode import UnreadableImage, fit, open_image, pixels
from deepres.data.prepare import Prepare


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
    """Which part of each global batch this process takes."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """A contiguous part of ``count`` rows; the parts differ by at most one row."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images ready for the network, and what the whole of the global batch has."""

    images: Tensor  # float32 (n, C, H, W) on the device
    labels: Tensor  # (n,)
    total: int  # examples of the global batch, over all processes
    full: bool  # whether it has the usual size; the tail of an epoch has not
    unreadable: int = 0  # images replaced by another because they could not be decoded


@dataclass(frozen=True, eq=False)
class _Views(Dataset[tuple[Tensor, int, int]]):
    """Decodes and crops one large image; runs in a worker process."""

    split: Streamed
    prepare: Prepare
    augment: Augment

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[Tensor, int, int]:
        index, seed, epoch, size = key
        for failed in range(16):
            item = self.split.items[(index + failed) % len(self.split)]
            try:
                exact = self.augment == "none"
                image = open_image(item.read(), self.split.channels, draft=None if exact else 2 * size)
            except (UnreadableImage, OSError):
                continue
            if exact:
                scale = size / self.prepare.size
                return pixels(fit(image, size, round(self.prepare.resize * scale) or None)), item.label, failed
            return pixels(random_view(image, self.augment, size, seeded(seed, epoch, index))), item.label, failed
        raise UnreadableImage(f"{item.name}: 16 images in a row, up to this one, cannot be read")


@dataclass(eq=False)
class Loader:
    """Batches of one split.

    A tail shorter than two examples per process (which batch norm could not take) is filled from the epoch's beginning;
    otherwise each example is seen exactly once an epoch, over however many processes.
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
    workers: int | None = None
    waited: float = 0.0  # seconds that the consumer waited for data, in all
    unreadable: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.split, Resident):
            self.split = self.split.to(self.device)
        self.batch = min(self.batch, len(self.split))
        self.steps = -(-len(self.split) // self.batch)

    def order(self, epoch: int) -> Tensor:
        """The epoch's permutation, the same in every process."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=seeded(self.seed, 1, epoch))

    def _rows(self, epoch: int, start: int) -> Iterator[tuple[int, Tensor, bool]]:
        order = self.order(epoch)
        for step in range(start, self.steps):
            rows = order[step * self.batch : (step + 1) * self.batch]
            full = len(rows) == self.batch
            least = min(2 * self.share.world, len(order)) if self.shuffle else 1
            if len(rows) < least:
                rows = torch.cat((rows, order[: least - len(rows)]))
            yield step, rows, full

    def epoch(self, epoch: int, start: int = 0, size: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch from step ``start`` on, with views of side ``size`` (default: as prepared)."""
        if isinstance(self.split, Resident):
            yield from self._resident(self.split, epoch, start, size)
        else:
            yield from self._streamed(self.split, epoch, start, size or self.prepare.size)

    def some(self, examples: int, epoch: int = 0) -> Iterator[Batch]:
        """The first batches of an epoch with about so many examples in all, over all processes; at least one batch."""
        return islice(self.epoch(epoch), max(1, round(examples / self.batch)))

    def _finish(self, images: Tensor, epoch: int, step: int, total: int, first: int) -> Tensor:
        if self.colour and images.shape[1] == 3:
            generator = seeded(self.seed, 3, epoch, step)
            tinted = lighting(images.float() / 255, generator, total=total, first=first)
            return self.prepare.normalise(tinted * 255)
        return self.prepare.normalise(images)

    def _resident(self, split: Resident, epoch: int, start: int, size: int | None) -> Iterator[Batch]:
        for step, rows, full in self._rows(epoch, start):
            began = time.perf_counter()
            mine = self.share.of(len(rows))
            index = rows[mine].to(self.device)
            images = split.pixels[index]
            if self.augment != "none":
                side = images.shape[-1]
                pad = max(1, round(side / 8))  # 4 at 32 pixels (He et al. 2015, section 4.2)
                generator = seeded(self.seed, 2, epoch, step)
                flip = self.augment != "pad-crop"
                images = pad_crop_flip(images, generator, pad=pad, flip=flip, total=len(rows), first=mine.start)
            ready = self._finish(images, epoch, step, len(rows), mine.start)
            if size is not None and size != ready.shape[-1]:
                ready = torch.nn.functional.interpolate(ready, (size, size), mode="bilinear", antialias=True)
            labels = split.labels[index]
            self.waited += time.perf_counter() - began
            yield Batch(ready, labels, len(rows), full)

    def _streamed(self, split: Streamed, epoch: int, start: int, size: int) -> Iterator[Batch]:
        plan = list(self._rows(epoch, start))
        keys = [[(int(i), self.seed, epoch, size) for i in rows[self.share.of(len(rows))]] for _, rows, _ in plan]
        workers = self.workers if self.workers is not None else min(8, os.cpu_count() or 1)
        loader: DataLoader[tuple[Tensor, int, int]] = DataLoader(
            _Views(split, self.prepare, self.augment),
            batch_sampler=keys,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="forkserver" if workers else None,
        )
        began = time.perf_counter()
        for (step, rows, full), (images, labels, failed) in zip(plan, loader, strict=True):
            moved = images.to(self.device, non_blocking=True)
            ready = self._finish(moved, epoch, step, len(rows), self.share.of(len(rows)).start)
            bad = int((failed > 0).sum())
            self.unreadable += bad
            self.waited += time.perf_counter() - began
            yield Batch(ready, labels.to(self.device), len(rows), full, bad)
            began = time.perf_counter()
