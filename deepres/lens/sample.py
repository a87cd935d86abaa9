"""The sample: the examples on which a network is measured, and the reference of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import flat, logits_of
from deepres.errors import DeepresError


@dataclass(frozen=True, eq=False)
class Sample:
    """Batches of inputs and right answers, small enough for many passes.

    ``against`` names the reference: ``"labels"``, or ``"itself"``, the unchanged network's own answers, where its classes are not
    the data's. An error against itself is the share of answers that change.
    """

    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    against: str

    @classmethod
    def take(cls, model: nn.Module, batches: Iterable[Any]) -> Sample:
        """Keep the batches: pairs of inputs and labels, or objects with ``images`` and ``labels``, or inputs alone.

        Raises ``DeepresError`` where there are none.
        """
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in batches:
            if isinstance(batch, Tensor):
                x, y = batch, None
            elif hasattr(batch, "images"):
                x, y = batch.images, batch.labels
            else:
                x, y = batch
            if len(x):
                inputs.append(x)
                if y is not None:
                    labels.append(y)
        if not inputs:
            raise DeepresError("there are no examples to measure; give at least one batch")
        if len(labels) < len(inputs):
            own = [logits.argmax(-1) for logits in _run(model, inputs)]
            return cls(tuple(inputs), tuple(own), "itself")
        with torch.no_grad():
            classes = logits_of(model, inputs[0][:2]).shape[-1]
        top = max(int(y.max()) for y in labels)
        if top >= classes:
            raise DeepresError(
                f"a label is {top}, and the network has {classes} classes; leave the labels out to compare its answers with its own"
            )
        return cls(tuple(inputs), tuple(labels), "labels")

    def __len__(self) -> int:
        """Number of examples."""
        return sum(map(len, self.inputs))

    @property
    def answers(self) -> int:
        """Number of answers: examples, or tokens of a language model."""
        return sum(y.numel() for y in self.labels)

    def first(self, count: int) -> Sample:
        """The first ``count`` examples."""
        inputs, labels = [], []
        for x, y in zip(self.inputs, self.labels, strict=True):
            if count > 0:
                inputs.append(x[:count])
                labels.append(y[:count])
                count -= len(x)
        return Sample(tuple(inputs), tuple(labels), self.against)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.inputs, self.labels, strict=True)

    @torch.no_grad()
    def right(self, model: nn.Module) -> Tensor:
        """Truth values (answers,): whether each answer is that of the reference."""
        return torch.cat(
            [(logits.argmax(-1) == y).reshape(-1) for logits, y in zip(_run(model, self.inputs), self.labels, strict=True)]
        ).cpu()


def _run(model: nn.Module, inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    with torch.no_grad():
        for x in inputs:
            yield logits_of(model, x)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, nats."""
    rows, answers = flat(logits, labels)
    return F.cross_entropy(rows, answers)
