"""Examples: three splits, in memory when small, read from files when large."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deepres.data.decode import UnreadableImage, open_image
from deepres.data.files import Item
from deepres.data.prepare import Prepare, Tokens
from deepres.errors import DeepresError


@dataclass(frozen=True, eq=False)
class Resident:
    """A split that lives in memory: uint8 (N, C, H, W) and labels (N,); of a text (N, L) tokens and (N, L) next ones, uint8 or int32."""

    pixels: Tensor
    labels: Tensor
    sources: tuple[
        Item, ...
    ] = ()  # the files that the rows were decoded from, where there are any; their labels may be outdated

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Resident:
        sources = tuple(self.sources[i] for i in index.tolist()) if self.sources else ()
        return Resident(self.pixels[index], self.labels[index], sources)

    def to(self, device: torch.device | str) -> Resident:
        return Resident(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split whose images are decoded when they are needed."""

    items: tuple[Item, ...]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> Tensor:
        return torch.tensor([item.label for item in self.items], dtype=torch.int64)

    def take(self, index: Tensor) -> Streamed:
        return replace(self, items=tuple(self.items[i] for i in index.tolist()))


Split = Resident | Streamed


@dataclass(frozen=True, eq=False)
class Data:
    """A classification set. ``val`` is for choices; ``test`` only for the last word."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    prepare: Prepare
    unreadable: tuple[str, ...] = field(default=())  # images that could not be decoded and are left out
    notes: tuple[str, ...] = ()  # sentences on what was left out of the set, and on splits that are not what they should be

    @property
    def is_text(self) -> bool:
        return isinstance(self.prepare, Tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input, where that is images."""
        return self.prepare.channels, self.prepare.size, self.prepare.size

    def need_training(self) -> None:
        """Raises ``DeepresError`` for a set that can only be tested and looked at."""
        if not len(self.train):
            raise DeepresError(
                f"{self.name}: has no training images, so nothing can be trained on it; `evaluate` and `look` take it"
            )

    def centred_by_pixel(self) -> Data:
        """Prepared by subtracting the training images' mean at each pixel (He et al. 2015, section 4.2)."""
        if not isinstance(self.train, Resident):
            return self
        mean = self.train.pixels.double().mean(0).div(255)
        rounded = tuple(tuple(tuple(round(v, 5) for v in row) for row in plane) for plane in mean.tolist())
        return replace(self, prepare=replace(self.prepare, mean=rounded))

    def __str__(self) -> str:
        parts = f"{len(self.train)} train, {len(self.val)} validation, {len(self.test)} test"
        left = f", {len(self.unreadable)} unreadable left out" if self.unreadable else ""
        each, kinds = "x".join(map(str, self.shape)), f"{len(self.classes)} classes"
        if isinstance(self.prepare, Tokens):
            what = self.prepare.vocabulary.kind if self.prepare.vocabulary is not None else "tokens"
            each, kinds = f"{self.prepare.size} tokens each", f"{len(self.classes)} {what}"
        return "\n".join([f"{self.name}: {kinds}, {parts}{left}, {each}", *(f"  {note}" for note in self.notes)])

    def report(self) -> dict[str, Any]:
        """Counts and notes, for a run's ``result.json``."""
        return {
            "name": self.name,
            "classes": len(self.classes),
            "train": len(self.train),
            "val": len(self.val),
            "test": len(self.test),
            "unreadable": list(self.unreadable),
            "notes": list(self.notes),
        }


def split_off(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (rest, part) with ``share`` of every class in the part, at least one where a class has two or more.

    The split belongs to the data, not to the run: ``seed`` is fixed, so that runs with other seeds are comparable.
    """
    generator = torch.Generator().manual_seed(seed)
    rest, part = [], []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero().squeeze(1)
        mine = mine[torch.randperm(len(mine), generator=generator)]
        cut = min(max(1, round(share * len(mine))), len(mine) - 1)  # none of a single one
        part.append(mine[:cut])
        rest.append(mine[cut:])
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *rest]).sort().values, torch.cat([none, *part]).sort().values


def decode_all(items: tuple[Item, ...], prepare: Prepare) -> tuple[Resident, list[str]]:
    """Decode every item to ``prepare``'s size. Also the names of those that could not be read, which are left out."""
    out = torch.empty((len(items), prepare.channels, prepare.size, prepare.size), dtype=torch.uint8)
    good, bad = [], []
    for i, item in enumerate(items):
        try:
            out[i] = prepare.image(open_image(item.read(), prepare.channels))
            good.append(i)
        except (UnreadableImage, OSError):
            bad.append(item.name)
    labels = torch.tensor([item.label for item in items], dtype=torch.int64)
    whole = Resident(out, labels, items)
    return (whole if not bad else whole.take(torch.tensor(good, dtype=torch.int64))), bad
