"""Test a network on a split: errors, confusion, calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import flat, kept_modes, logits_of
from deepres.data import Loader, Prepare, Shard, Split, Tokens

MOST_CONFUSED = 1024  # classes up to which the confusion of all pairs is kept
LOGITS = 1 << 24  # values that a language model gives in one call, at most
BINS = 15  # of the calibration error (Guo et al. 2017)


@dataclass(frozen=True)
class Evaluation:
    """Errors of a network on a split, in percent, with its answers."""

    n: int
    loss: float  # mean cross-entropy, nats
    top1: float  # error, %
    top5: float  # error, %; of the classes there are, if fewer than six
    per_class: dict[str, float]  # top-1 error of each class, %; only classes that occur
    confusion: list[list[int]]  # [true][predicted]; empty above 1,024 classes
    calibration: float  # expected calibration error, %: mean gap between confidence and accuracy over 15 bins
    unreadable: int = 0  # images that could not be decoded; by one crop another stands in for each, else they are left out
    classes: tuple[str, ...] = ()  # of the rows and columns of `confusion`
    bits_per_byte: float | None = None  # of a language model: the text's code length by it, whatever its tokens are

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _Tally:
    """Sums that add up over batches and processes. ``lengths``: the bytes of each token of a language model."""

    def __init__(self, classes: int, device: torch.device, lengths: Tensor | None = None) -> None:
        pairs = classes * classes if classes <= MOST_CONFUSED else 0
        self.confusion = torch.zeros(pairs, dtype=torch.int64, device=device)
        self.counts = torch.zeros(2, classes, dtype=torch.int64, device=device)  # of each class, and of these the right ones
        self.lengths = lengths.to(device) if lengths is not None else None
        self.text = torch.zeros(2, dtype=torch.float64, device=device)  # nats, and bytes, of tokens that stand for text
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)  # count, confidence, right
        self.unreadable = torch.zeros((), dtype=torch.int64, device=device)
        self.classes = classes

    def add(self, logits: Tensor, labels: Tensor) -> None:
        logits, labels = flat(logits, labels)
        if self.lengths is None:
            self.loss += F.cross_entropy(logits, labels, reduction="sum")
        else:
            nats, size = F.cross_entropy(logits, labels, reduction="none").double(), self.lengths[labels]
            self.loss += nats.sum()
            self.text += torch.stack((nats[size > 0].sum(), size.sum().double()))
        best = logits.topk(min(5, logits.shape[1])).indices
        self.top5 += (best == labels[:, None]).sum()
        if self.confusion.numel():
            self.confusion += torch.bincount(labels * self.classes + best[:, 0], minlength=self.classes**2)
        for row, which in zip(self.counts, (labels, labels[best[:, 0] == labels]), strict=True):
            row += torch.bincount(which, minlength=self.classes)
        confidence = logits.softmax(1).gather(1, best[:, :1]).squeeze(1).double()
        where = (confidence * BINS).long().clamp(0, BINS - 1)  # NaN becomes a negative integer
        for row, values in enumerate((torch.ones_like(confidence), confidence, (best[:, 0] == labels).double())):
            self.bins[row].index_add_(0, where, values)

    def reduce(self) -> None:
        for tensor in (self.confusion, self.counts, self.top5, self.loss, self.bins, self.text, self.unreadable):
            dist.all_reduce(tensor)

    def result(self, names: tuple[str, ...]) -> Evaluation:
        names = _distinct(names)
        totals, right = self.counts.tolist()
        n, (nats, size) = sum(totals), self.text.tolist()
        count, confidence, hits = self.bins.cpu()
        per_class = {names[i]: 100 * (1 - right[i] / total) for i, total in enumerate(totals) if total}
        return Evaluation(
            n=n,
            loss=float(self.loss) / n,
            top1=100 * (1 - sum(right) / n),
            top5=100 * (1 - int(self.top5) / n),
            per_class=per_class,
            confusion=self.confusion.view(-1, self.classes).tolist(),
            calibration=100 * float((confidence - hits).abs().sum()) / float(count.sum()),
            unreadable=int(self.unreadable),
            classes=names,
            bits_per_byte=nats / math.log(2) / size if size else None,
        )


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` with its place behind each that occurs more than once, as "crane" does among ImageNet's."""
    times = Counter(names)
    return tuple(f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names))


@torch.no_grad()
def measure(
    model: nn.Module,
    split: Split,
    prepare: Prepare,
    classes: tuple[str, ...],
    *,
    batch: int = 250,
    device: torch.device | str = "cpu",
    layout: torch.memory_format = torch.contiguous_format,
    autocast: AbstractContextManager[object] | None = None,
    share: Shard | None = None,
    workers: int | None = None,
) -> Evaluation:
    """Run ``model`` in eval mode over every example of ``split``, once. Under several processes each takes its share."""
    device, share = torch.device(device), share or Shard()
    lengths = None
    if isinstance(prepare, Tokens):
        batch = max(1, min(batch, LOGITS // (prepare.size * len(classes))))
        lengths = prepare.vocabulary.lengths if prepare.vocabulary is not None else None
    loader = Loader(split, prepare, batch, shuffle=False, device=device, share=share, workers=workers)
    tally = _Tally(len(classes), device, lengths)
    with kept_modes(model), autocast or nullcontext():
        model.eval()
        for step in loader.epoch(0):
            if len(step.labels):
                images = step.images.to(memory_format=layout) if step.images.ndim == 4 else step.images
                tally.add(logits_of(model, images), step.labels)
    tally.unreadable += loader.unreadable
    if share.world > 1:
        tally.reduce()
    return tally.result(classes)
