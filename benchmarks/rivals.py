"""Other ways to take blocks out, for the benchmark: each shares our loop, deletion and norm estimation, and differs in what goes when.

- ``Responses``: train, then delete the blocks with the smallest responses at once, then fine-tune.
- ``Lesions``: the same by the rise of the loss without each block.
- ``Threshold``: while training, a residual whose response stays under a threshold counts as zero from then on; the threshold rises
  until enough are gone (after Learning Strict Identity Mappings, Yu et al. 2018).
- ``NormScale``: while training, an L1 penalty on the scale of each branch's last norm; the smallest go (after Network Slimming, Liu et
  al. 2017).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from deepres.data import Batch
from deepres.shrinking import InverseCurriculum, Schedule, Target
from deepres.training import Trainer


def at_once(target: Target) -> Schedule:
    """Deletes first and learns from the whole network's answers then, for those that start from a trained one."""
    return Schedule(target, 0.0, 0.01, distil=0.5)


class _Cut(InverseCurriculum, ABC):
    """Deletes by a score, lowest first, when the share ``plan.press`` of the run is behind."""

    @abstractmethod
    def scores(self) -> dict[int, float]:
        """By block, of those that may go."""

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        done = trainer.progress.done
        if not self.stopped and done >= max(1, round(self.plan.press * self.trainer.total)):
            self.cut()
            self._remove()

    def cut(self) -> None:
        scores = self.scores()
        for i in sorted(scores, key=lambda i: scores[i]):
            if sum(self.costs[j] for j in self._going()) >= self.amount - 1e-9:
                break
            if self._fits(i):
                self.pressing.openness[i] = 0.0

    def removable(self) -> list[int]:
        return [i for i, unit in enumerate(self.units) if unit.removable and self.pressing.openness[i] > 0]


class Responses(_Cut):
    def scores(self) -> dict[int, float]:
        self._earnings()
        return dict(self._sizes_now)


class Lesions(_Cut):
    def scores(self) -> dict[int, float]:
        return {i: earned * self.prices[i] for i, earned in self._earnings().items()}


class NormScale(_Cut):
    strength = 1e-3

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        total = super().loss(trainer, loss, logits, images, labels)
        if not self.stopped:
            total = total + self.strength * sum(self._scale(i).abs().sum() for i in self.removable())
        return total

    def _scale(self, i: int) -> Tensor:
        """Of the norm that ends the branch; in a Transformer, whose norms stand in front of the branches, of these."""
        sites = self.units[i].sites
        behind = [m.weight for m in sites[-1].end.modules() if isinstance(m, nn.BatchNorm2d)]
        return behind[-1] if behind else torch.cat([m.weight for m in sites[0].block.modules() if isinstance(m, nn.LayerNorm)])

    def scores(self) -> dict[int, float]:
        return {i: float(self._scale(i).detach().abs().mean()) for i in self.removable()}


class Threshold(InverseCurriculum):
    patience = 20  # steps under the threshold after which a residual counts as zero

    def run_begins(self, trainer: Trainer) -> None:
        super().run_begins(trainer)
        self.under: dict[int, int] = {}

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        self._now = {i: float(size.detach()) for i in self.pressing.wanted if (size := self.pressing.size(i)) is not None}
        return super().loss(trainer, loss, logits, images, labels)

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        done = trainer.progress.done
        first, last = (round(share * self.trainer.total) for share in (self.plan.learn, self.plan.press))
        if self.stopped or done < first:
            return
        gone = sum(self.costs[j] for j in self._going())
        if done >= last:
            self._remove()
            return
        alive = [i for i, unit in enumerate(self.units) if unit.removable and self.pressing.openness[i] > 0]
        self.pressing.wanted = set(alive)
        due = self.amount * min(1.0, (done - first + 1) / max((last - first) * 0.9, 1))
        for i in sorted((i for i in alive if i in self._now), key=lambda i: self._now[i]):
            # the threshold lies so that as many are under it as are due by now
            low = gone + self.costs[i] <= due + 1e-9 and self._fits(i)
            self.under[i] = self.under.get(i, 0) + 1 if low else 0
            gone += self.costs[i] if low else 0.0
            if self.under[i] >= self.patience or (low and done > last - 3):
                self.pressing.openness[i] = 0.0
                self.closed_at[self.units[i].path] = done


__all__ = ["Lesions", "NormScale", "Responses", "Threshold", "at_once"]
