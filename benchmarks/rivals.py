"""Other methods of removing blocks, for comparison. They share our training loop, deletion and estimation of norm statistics.

- ``Responses``: train, delete the blocks with the smallest residual ratios at once, fine-tune.
- ``Lesions``: the same, by the rise of the loss without each block.
- ``Influence``: the same, by one minus the cosine of a block's input and output (ShortGPT, Men et al. 2024).
- ``LastLayers``: the same, the blocks nearest to the output first.
- ``Random``: the same, by chance.
- ``Threshold``: a residual whose ratio stays below a threshold for some steps becomes zero; the threshold rises until enough blocks
  are the identity (after Learning Strict Identity Mappings, Yu et al. 2018).
- ``NormScale``: an L1 penalty on the scale of each branch's last norm during training; the blocks with the smallest scales are deleted
  (after Network Slimming, Liu et al. 2017).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.adapters.calls import signal_in
from deepres.data import Batch, seeded
from deepres.shrinking import InverseCurriculum, ShrinkSchedule, Target
from deepres.shrinking.importance import IMPORTANCE_EXAMPLES
from deepres.training import Trainer


def at_once(target: Target) -> ShrinkSchedule:
    """Schedule that deletes blocks in the first steps and then fine-tunes with distillation from the whole network."""
    return ShrinkSchedule(target, 0.0, 0.01, distil=0.5)


class _Cut(InverseCurriculum, ABC):
    """Deletes the blocks with the lowest scores at once, at the share ``schedule.constrain`` of the run."""

    @abstractmethod
    def scores(self) -> dict[int, float]:
        """Score of each removable block, by its index."""

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        if not self.finished and trainer.progress.done >= max(1, round(self.schedule.constrain * trainer.total)):
            self.cut()
            self._delete_identities()

    def cut(self) -> None:
        scores = self.scores()
        for i in sorted(scores, key=lambda i: scores[i]):
            if sum(self.costs[j] for j in self._selected()) >= self.to_remove - 1e-9:
                break
            if self._leaves_a_block(i):
                self.constraint.scales[i] = 0.0

    def removable(self) -> list[int]:
        return [i for i, block in enumerate(self.blocks) if block.removable and self.constraint.scales[i] > 0]


class Responses(_Cut):
    def scores(self) -> dict[int, float]:
        self._importance_per_cost()
        return dict(self._ratios_now)


class Lesions(_Cut):
    def scores(self) -> dict[int, float]:
        return {i: value * self.ranking_costs[i] for i, value in self._importance_per_cost().items()}


class Influence(_Cut):
    @torch.no_grad()
    def scores(self) -> dict[int, float]:
        found = dict.fromkeys(self.removable(), 0.0)
        with ExitStack() as stack:
            for i in found:
                site = self.blocks[i].sites[-1]
                dim = 1 if site.layout == "NCHW" else -1

                def see(_: nn.Module, args: tuple[Any, ...], out: Any, i: int = i, dim: int = dim) -> None:
                    found[i] += float(1 - F.cosine_similarity(args[0].float(), signal_in(out).float(), dim=dim).mean())

                stack.callback(site.block.register_forward_hook(see).remove)
            model = self.trainer.model.eval()
            for batch in self.trainer.loader.some(IMPORTANCE_EXAMPLES, self.trainer.progress.epoch):
                logits_of(model, self.trainer.to_layout(batch.images))
            model.train()
        return found


class LastLayers(_Cut):
    def scores(self) -> dict[int, float]:
        return {i: -float(i) for i in self.removable()}


class Random(_Cut):
    def scores(self) -> dict[int, float]:
        found = self.removable()
        return dict(zip(found, torch.rand(len(found), generator=seeded(self.trainer.run.seed, 9)).tolist(), strict=True))


class NormScale(_Cut):
    strength = 1e-3

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        total = super().loss(trainer, loss, logits, images, labels)
        if not self.finished:
            total = total + self.strength * sum(self._scale(i).abs().sum() for i in self.removable())
        return total

    def _scale(self, i: int) -> Tensor:
        """Scale of the norm that ends the branch; in a Transformer, scales of the norms in front of the branches."""
        sites = self.blocks[i].sites
        modules = [layer for module in sites[-1].branch_modules for layer in module.modules()]
        behind = [m.weight for m in modules if isinstance(m, nn.BatchNorm2d)]
        return behind[-1] if behind else torch.cat([m.weight for m in sites[0].block.modules() if isinstance(m, nn.LayerNorm)])

    def scores(self) -> dict[int, float]:
        return {i: float(self._scale(i).detach().abs().mean()) for i in self.removable()}


class Threshold(InverseCurriculum):
    patience = 20  # steps below the threshold after which a residual becomes zero

    def run_begins(self, trainer: Trainer) -> None:
        super().run_begins(trainer)
        self.below: dict[int, int] = {}

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        found = {i: self.constraint.ratio(i) for i in self.constraint.measured}
        self._measured = {i: float(ratio.detach()) for i, ratio in found.items() if ratio is not None}
        return super().loss(trainer, loss, logits, images, labels)

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        done = trainer.progress.done
        first, last = (round(share * trainer.total) for share in (self.schedule.learn, self.schedule.constrain))
        if self.finished or done < first:
            return
        removed = sum(self.costs[j] for j in self._selected())
        if done >= last:
            self._delete_identities()
            return
        open_blocks = [i for i, block in enumerate(self.blocks) if block.removable and self.constraint.scales[i] > 0]
        self.constraint.measured = set(open_blocks)
        due = self.to_remove * min(1.0, (done - first + 1) / max((last - first) * 0.9, 1))
        for i in sorted((i for i in open_blocks if i in self._measured), key=lambda i: self._measured[i]):
            # the threshold is set so that as many blocks are below it as are due by now
            low = removed + self.costs[i] <= due + 1e-9 and self._leaves_a_block(i)
            self.below[i] = self.below.get(i, 0) + 1 if low else 0
            removed += self.costs[i] if low else 0.0
            if self.below[i] >= self.patience or (low and done > last - 3):
                self.constraint.scales[i] = 0.0
                self.identity_at[self.blocks[i].path] = done


__all__ = ["Influence", "LastLayers", "Lesions", "NormScale", "Random", "Responses", "Threshold", "at_once"]
