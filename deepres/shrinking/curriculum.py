"""Inverse Curriculum Training: learn with the whole depth, press until needless blocks are identities, take them out, recover.

An ordinary curriculum goes from easy to hard. This one starts with more depth than is needed, which residual connections make
easy to train, and gives it back:

1. *learn*: the network trains as its recipe says;
2. *press*: unit by unit, those that earn least for what they cost have their residual bounded by a line that falls to zero. A
   penalty, whose weight rises while the residual is above its line, makes the weights give way; what is left above the line is
   scaled away. Where the training error rises too far, the lines wait. A unit that turns out to be needed is let go again;
3. *recover*: the blocks whose residual is exactly zero are deleted, norms are estimated anew, and training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepres.adapters import delete_blocks
from deepres.callback import Callback
from deepres.data import Batch
from deepres.errors import DeepresError
from deepres.shrinking.cost import measured_units
from deepres.shrinking.importance import block_importance, residual_sizes
from deepres.shrinking.press import Press
from deepres.shrinking.removal import delete_identities
from deepres.shrinking.schedule import Closing, EpochSizes, Schedule
from deepres.shrinking.target import Target
from deepres.shrinking.teacher import Teacher, running
from deepres.training import Record, Trainer
from deepres.training.norms import estimate_norm_statistics

WINDOW = 0.4  # of the press phase: how long one unit takes from open to closed
GROUPS = 6  # times at which units are chosen
RATE = 0.02  # per step: how fast a penalty's weight follows the residual's excess over its line
EASED = 0.5  # power of a unit's rise of the loss: most of what it costs to lose one at once is won back by training on


@dataclass(eq=False)
class InverseCurriculum(Callback):
    """The curriculum of one run; ``shrink`` is the way in."""

    plan: Schedule
    exact: bool = False  # weigh units by multiply-adds, since a clock would make each run another
    say: Callable[[str], None] = lambda text: None
    removed: list[str] = field(default_factory=list)  # paths of blocks that are gone, as they were called at first
    difference: float = 0.0  # of the outputs before and after the deletion, against the largest
    history: list[EpochSizes] = field(default_factory=list)
    closed_at: dict[str, int] = field(default_factory=dict)  # path -> step

    changes_network = True

    # ---- the run's side

    def run_begins(self, trainer: Trainer) -> None:
        self.trainer = trainer
        model = trainer.model
        batch = next(trainer.loader.epoch(0))
        self.probe = trainer.to_layout(batch.images[:64])
        self.units = measured_units(model, self.probe[:32])
        if not any(unit.removable for unit in self.units):
            raise DeepresError(
                "the network has no residual block that could be the identity, so there is nothing to shrink"
                + ("" if self.units else "; if it has blocks of its own class, tell of them by register_site")
            )
        costs = Target("macs", 0.5) if self.exact and self.plan.target.what in ("time", "error") else self.plan.target
        self.costs = costs.costs(self.units)
        timed = costs.what == "blocks" and not self.exact  # a number of blocks shall go, and dear ones rather than cheap ones
        self.prices = Target("time", 0.5).costs(self.units) if timed else self.costs
        self.amount = self.plan.target.amount(self.units)
        if costs is not self.plan.target:
            self.amount = min(self.amount, sum(c for u, c in zip(self.units, self.costs, strict=True) if u.removable))
        self.teacher = Teacher(trainer, self.plan.distil) if self.plan.distil else None
        self.pressing = Press(self.units)
        self._off = self.pressing.on()
        trainer.run_eagerly()  # hooks that change from step to step are not compiled
        self.closing: dict[int, Closing] = {}
        self.letting_go: set[int] = set()
        self.clock, self.asked, self.stopped = 0.0, 0, False
        self.recent = self.best = math.inf
        self.whole_error: float | None = None

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        self._task = float(loss.detach())
        total = loss
        if self.teacher is not None:
            total = self.teacher.loss(total, logits, images, labels)
        self._sizes = {i: self.pressing.size(i) for i in self.closing}
        for i, closing in self.closing.items():
            size = self._sizes[i]
            if size is not None and closing.weight:
                total = total + closing.weight * size
        self.pressing.clear()
        return total

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        done = trainer.progress.done
        first, last = (round(share * trainer.total) for share in (self.plan.learn, self.plan.press))
        if self.stopped or done < first:
            return
        self._watch_loss()
        if done >= last:
            self._remove()
            return
        left = last - done
        if not (self.recent > self.best + self.plan.rise and left > 0.3 * (last - first)):
            self.clock += (1 - self.clock) / left  # what waited is caught up with by the end
        while self.asked < GROUPS and self.clock >= (1 - WINDOW) * self.asked / max(GROUPS - 1, 1):
            self.asked += 1
            self._choose(self.amount * self.asked / GROUPS, last=self.asked == GROUPS)
        self._follow_lines(done)

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        staying = [i for i, unit in enumerate(self.units) if unit.path not in self.removed]
        found = residual_sizes(trainer.model, self.probe, None if self.stopped else self.pressing)
        sizes = [0.0] * len(self.units)
        for place, value in zip(staying, found, strict=True):
            sizes[place] = value
        self.history.append(EpochSizes(record.epoch, sizes, sum(openness == 0 for openness in self.pressing.openness)))

    # ---- the controller

    def _watch_loss(self) -> None:
        self.recent = running(self.recent, self.trainer.context.mean(self._task))
        self.best = min(self.best, self.recent)

    def _follow_lines(self, done: int) -> None:
        """Bound each closing unit's residual by its line, and let the penalty's weight follow the excess."""
        for i, closing in list(self.closing.items()):
            size = self._size(i)
            line = max(0.0, 1 - (self.clock - closing.began) / WINDOW)
            line = 0.0 if line < 1e-6 else line  # the clock is a sum of many small parts
            openness = self.pressing.openness[i]
            if size is not None and openness > 0:
                allowed = line * closing.size
                excess = (size - allowed) / max(closing.size, 1e-12)
                closing.weight = max(0.0, closing.weight + self.plan.penalty * RATE * excess)
                self.pressing.openness[i] = min(1.0, allowed / max(size / openness, 1e-12))
            if line == 0:
                self.pressing.openness[i] = 0.0
                self.closing.pop(i)
                self.pressing.wanted.discard(i)
                self.closed_at[self.units[i].path] = done
        for i in list(self.letting_go):
            opened = self.pressing.openness[i] + 1 / max(WINDOW * self.trainer.total * (self.plan.press - self.plan.learn), 1)
            self.pressing.openness[i] = min(1.0, opened)
            if opened >= 1:
                self.letting_go.discard(i)

    def _size(self, i: int) -> float | None:
        """The same in all processes."""
        size = self._sizes.get(i)
        return None if size is None else self.trainer.context.mean(size.detach())

    def _choose(self, wanted: float, last: bool) -> None:
        """Close further units until ``wanted`` of the costs is closing or closed: those that earn least for what they cost."""
        if self.plan.target.what == "error" and not self._may_go_on():
            return
        earns = self._earnings()
        open_units = [i for i in earns if i not in self.closing]
        under = [i for i in self.closing if self.pressing.openness[i] > 0.25 and not last]
        # a unit that has become dearer than twice what another would be gets its chance to come back
        for i in sorted(under, key=lambda i: -earns[i]):
            cheaper = min(open_units, key=lambda j: earns[j], default=None)
            if (
                cheaper is not None
                and earns[i] > 2 * max(earns[cheaper], 0.0)
                and earns[i] > 0
                and self._fits(cheaper, without=i)
            ):
                self.closing.pop(i)
                self.pressing.wanted.discard(i)
                self.letting_go.add(i)
                open_units.remove(cheaper)
                self._close(cheaper)
                self.say(f"{self.units[i].path} is needed after all, {self.units[cheaper].path} goes instead")
        for i in sorted(open_units, key=lambda i: earns[i]):
            going = sum(self.costs[j] for j in self._going())
            rest = wanted - going
            if rest <= (1e-9 if last else self.costs[i] / 2):
                break
            if self._fits(i):
                self._close(i)

    def _close(self, i: int) -> None:
        self.letting_go.discard(i)
        self.closing[i] = Closing(self.clock, self._sizes_now[i])
        self.pressing.wanted.add(i)

    def _going(self) -> list[int]:
        return [i for i, openness in enumerate(self.pressing.openness) if openness == 0 or i in self.closing]

    def _fits(self, i: int, without: int | None = None) -> bool:
        """Whether the unit's list keeps what it needs when this one goes too."""
        here = [j for j, unit in enumerate(self.units) if unit.container == self.units[i].container]
        staying = [j for j in here if j not in self._going() or j == without]
        return len(staying) > 1

    def _earnings(self) -> dict[int, float]:
        """Importance of each block that is not closed yet, divided by its cost. Also notes the sizes of their residuals."""
        candidates = [i for i, unit in enumerate(self.units) if unit.removable and self.pressing.openness[i] > 0]
        rises, self._sizes_now = block_importance(self.trainer, self.pressing, candidates)
        eased = {i: math.copysign(abs(rise) ** EASED, rise) for i, rise in rises.items()}
        return {i: rise / max(self.prices[i], 1e-12) for i, rise in eased.items()}

    def _may_go_on(self) -> bool:
        """Whether the validation error, with all that is closing closed, is within what the target allows."""
        kept = list(self.pressing.openness)
        if self.whole_error is None:
            self.whole_error = self.trainer.measure("val", self.trainer.model).top1
        for i in self.closing:
            self.pressing.openness[i] = 0.0
        error = self.trainer.measure("val", self.trainer.model).top1 if self._going() else self.whole_error
        self.pressing.openness = kept
        if error <= self.whole_error + self.plan.target.value:
            return True
        self.say(f"the validation error would rise from {self.whole_error:.2f} to {error:.2f} %: no further block goes")
        self.letting_go |= set(self.closing)
        self.pressing.wanted -= set(self.closing)
        self.closing.clear()
        self.asked = GROUPS
        return False

    # ---- the end of pressing

    @torch.no_grad()
    def _remove(self) -> None:
        trainer, model = self.trainer, self.trainer.model
        for i in self.letting_go:
            self.pressing.openness[i] = 1.0
        for i in self.closing:
            self.pressing.openness[i] = 0.0
            self.closed_at[self.units[i].path] = trainer.progress.done
        gone = [unit.path for i, unit in enumerate(self.units) if self.pressing.openness[i] == 0]
        self.difference = delete_identities(model, gone, self.probe, self._off)
        self.removed, self.stopped = gone, True
        estimate_norm_statistics(trainer)
        trainer.replace_model()
        self.say(f"{len(gone)} of {len(self.units)} blocks are identities and have been taken out")

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        keep = (
            "clock",
            "asked",
            "stopped",
            "recent",
            "best",
            "whole_error",
            "costs",
            "prices",
            "amount",
            "difference",
            "removed",
            "closed_at",
        )
        return {
            **{key: getattr(self, key) for key in keep},
            "lead": self.teacher.lead if self.teacher is not None else None,
            "openness": list(self.pressing.openness),
            "closing": {i: [c.began, c.size, c.weight] for i, c in self.closing.items()},
            "letting_go": sorted(self.letting_go),
            "history": [[g.epoch, g.sizes, g.gone] for g in self.history],
        }

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if key not in ("openness", "closing", "letting_go", "history", "lead"):
                setattr(self, key, value)
        if self.teacher is not None:
            self.teacher.lead = state.get("lead", math.nan)  # runs of before have none
        self.pressing.openness = list(state["openness"])
        self.closing = {i: Closing(*values) for i, values in state["closing"].items()}
        self.pressing.wanted = set(self.closing)
        self.letting_go = set(state["letting_go"])
        self.history = [EpochSizes(*values) for values in state["history"]]
        if self.stopped:
            self._off()
            delete_blocks(self.trainer.model, self.removed)
            self.trainer.replace_model()
