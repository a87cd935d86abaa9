"""Inverse Curriculum Training: train with the whole depth, turn unimportant blocks into identities, delete them, train on.

An ordinary curriculum goes from easy to hard. This one starts with more depth than is needed, which residual connections make easy to
train, and removes depth in three phases:

1. *learn*: the network trains as its recipe says;
2. *constrain*: the blocks that are least important for their cost get a bound on their residual ratio, which falls to zero. A penalty,
   whose weight grows while the ratio exceeds the bound, shrinks the block's weights; a residual that still exceeds the bound is scaled
   down to it. While the training loss is too high, the bounds do not fall. A block that proves more important than another one is
   released;
3. *recover*: the blocks whose residual is exactly zero are deleted, norm statistics are estimated again, and training goes on.

With ``removal="at-once"`` the first two phases are left out: the blocks are chosen and deleted before the first step, and the layers
in front of them may take over, in closed form, what they did (see ``mending``).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import delete_blocks
from deepres.callback import Callback
from deepres.data import Batch
from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError
from deepres.shrinking.constraint import ResidualConstraint
from deepres.shrinking.cost import measured_blocks, staying_cost
from deepres.shrinking.features import FeatureDistillation
from deepres.shrinking.importance import GREEDY_EXAMPLES, IMPORTANCE_EXAMPLES, block_importance, residual_ratios
from deepres.shrinking.mending import Mended, find_gaps, mend
from deepres.shrinking.removal import delete_identities
from deepres.shrinking.schedule import Bound, EpochRatios, ShrinkSchedule
from deepres.shrinking.target import HELD, Target
from deepres.shrinking.teacher import Teacher, running_mean
from deepres.training import Record, Result, Trainer
from deepres.training.norms import estimate_norm_statistics

WINDOW = 0.4  # share of the constrain phase in which the bound of one block falls to zero
SELECTIONS = 6  # number of times at which blocks are selected
PENALTY_RATE = 0.02  # per step: growth of a penalty's weight for a ratio twice its first value above the bound
RECOVERY_EXPONENT = 0.5  # of a block's rise of the loss: training recovers most of what its removal at once would cost

_KEPT = (
    *("elapsed", "rounds", "finished", "loss_mean", "loss_least", "error_before", "costs", "ranking_costs", "to_remove"),
    *("difference", "removed", "identity_at"),
)  # attributes in checkpoints
_OLD_KEYS = {  # in checkpoints that were written before
    "clock": "elapsed",
    "asked": "rounds",
    "stopped": "finished",
    "recent": "loss_mean",
    "best": "loss_least",
    "whole_error": "error_before",
    "prices": "ranking_costs",
    "amount": "to_remove",
    "closed_at": "identity_at",
    "openness": "scales",
    "closing": "bounds",
    "letting_go": "released",
}


@renamed_fields(plan="schedule", say="log", closed_at="identity_at")
@dataclass(eq=False)
class InverseCurriculum(Callback):
    """Callback that shrinks the network of a run to the target of ``schedule``. ``deepres.shrink`` sets it up."""

    schedule: ShrinkSchedule
    exact: bool = False  # rank blocks by multiply-adds: measured times would make each run a different one
    log: Callable[[str], None] = lambda text: None
    removed: list[str] = field(default_factory=list)  # paths of the deleted blocks in the original network
    difference: float = 0.0  # largest difference of the outputs before and after the deletion, relative to the largest output
    history: list[EpochRatios] = field(default_factory=list)
    identity_at: dict[str, int] = field(default_factory=dict)  # path -> step after which the block was the identity
    mended: list[Mended] = field(default_factory=list)  # what was fitted in place of deleted blocks

    changes_network = True

    # ---- events of the run

    def run_begins(self, trainer: Trainer) -> None:
        self.trainer = trainer
        at_once = self.schedule.removal == "at-once" and trainer.progress.done == 0  # a resumed run is past this
        whole = copy.deepcopy(trainer.model).eval() if at_once and self.schedule.mend != "none" else None
        batch = next(trainer.loader.epoch(0))
        self.probe = trainer.to_layout(batch.images[:64])
        self.blocks = measured_blocks(trainer.model, self.probe[:32])
        if not any(block.removable for block in self.blocks):
            raise DeepresError(
                "the network has no residual block that could be the identity, so there is nothing to shrink"
                + ("" if self.blocks else "; if its blocks are of your own class, name their sites by register_site")
            )
        self._set_costs()
        taught = bool(self.schedule.distil or self.schedule.features)
        self.teacher = Teacher(trainer, self.schedule.distil) if taught else None
        self.constraint = ResidualConstraint(self.blocks)
        self._detach = self.constraint.attach()
        trainer.run_eagerly()  # scales change from step to step, which a compiled step would ignore
        self.bounds: dict[int, Bound] = {}
        self.released: set[int] = set()
        self.elapsed, self.rounds, self.finished = 0.0, 0, False
        self.loss_mean = self.loss_least = math.inf
        self.error_before: float | None = None
        self.features: FeatureDistillation | None = None
        if self.teacher is not None and self.schedule.features:
            self.features = FeatureDistillation(trainer.model, self.teacher.net, self.blocks)
        if at_once:
            self.rounds = SELECTIONS
            self._select(self.to_remove, last=True)
            self._delete_identities(whole)

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        self._end_features()

    def _set_costs(self) -> None:
        target, model = self.schedule.target, self.trainer.model
        counted = Target("macs", 0.5) if self.exact and target.quantity in ("time", *HELD) else target
        self.costs = counted.costs(self.blocks)
        # all blocks count the same for a target of blocks; of equally important ones, the slower are removed
        timed = counted.quantity == "blocks" and not self.exact
        self.ranking_costs = Target("time", 0.5).costs(self.blocks) if timed else self.costs
        self.to_remove = target.to_remove(self.blocks, staying_cost(model, self.blocks, target.costs(self.blocks)))
        if counted is not target:
            removable = sum(cost for block, cost in zip(self.blocks, self.costs, strict=True) if block.removable)
            self.to_remove = min(self.to_remove, removable - staying_cost(model, self.blocks, self.costs))

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        self._task_loss = float(loss.detach())
        total = loss if self.teacher is None else self.teacher.loss(loss, logits, images, labels)
        self._ratios = {i: self.constraint.ratio(i) for i in self.bounds}
        for i, bound in self.bounds.items():
            ratio = self._ratios[i]
            if ratio is not None and bound.weight:
                total = total + bound.weight * ratio
        if self.features is not None and (self.finished or self.bounds):
            gone = {self.blocks[i].path for i in self._selected()}
            total = total + self.schedule.features * self.features.loss(gone)
        self.constraint.clear()
        return total

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        done = trainer.progress.done
        first, last = (round(share * trainer.total) for share in (self.schedule.learn, self.schedule.constrain))
        if self.features is not None:
            self.features.clear()
            if self._features_are_over():
                self._end_features()
        if self.finished or done < first:
            return
        self.loss_mean = running_mean(self.loss_mean, trainer.context.mean(self._task_loss))
        self.loss_least = min(self.loss_least, self.loss_mean)
        if done >= last:
            if self.rounds < SELECTIONS:  # a run of a few steps has none inside the phase
                self.rounds = SELECTIONS
                self._select(self.to_remove, last=True)
            self._delete_identities()
            return
        left = last - done
        if not (self.loss_mean > self.loss_least + self.schedule.rise and left > 0.3 * (last - first)):
            self.elapsed += (1 - self.elapsed) / left  # after a pause the rest of the phase goes faster
        while self.rounds < SELECTIONS and self.elapsed >= (1 - WINDOW) * self.rounds / max(SELECTIONS - 1, 1):
            self.rounds += 1
            self._select(self.to_remove * self.rounds / SELECTIONS, last=self.rounds == SELECTIONS)
        self._tighten(done)

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        if self.features is not None:
            self.features.clear()
        remaining = [i for i, block in enumerate(self.blocks) if block.path not in self.removed]
        found = residual_ratios(trainer.model, self.probe, None if self.finished else self.constraint)
        ratios = [0.0] * len(self.blocks)
        for place, value in zip(remaining, found, strict=True):
            ratios[place] = value
        self.history.append(EpochRatios(record.epoch, ratios, sum(scale == 0 for scale in self.constraint.scales)))

    # ---- bounds

    def _tighten(self, done: int) -> None:
        """Lower the bounds, scale residuals down to them, and adapt the weights of the penalties to the excess."""
        scales = self.constraint.scales
        for i, bound in list(self.bounds.items()):
            ratio = self._mean_ratio(i)
            left = max(0.0, 1 - (self.elapsed - bound.started) / WINDOW)
            left = 0.0 if left < 1e-6 else left  # elapsed is a sum of many small parts
            if ratio is not None and scales[i] > 0:
                allowed = left * bound.ratio
                excess = (ratio - allowed) / max(bound.ratio, 1e-12)
                bound.weight = max(0.0, bound.weight + self.schedule.penalty * PENALTY_RATE * excess)
                scales[i] = min(1.0, allowed / max(ratio / scales[i], 1e-12))
            if left == 0:
                scales[i] = 0.0
                self._drop_bound(i)
                self.identity_at[self.blocks[i].path] = done
        steps = WINDOW * self.trainer.total * (self.schedule.constrain - self.schedule.learn)
        for i in list(self.released):
            scale = scales[i] + 1 / max(steps, 1)
            scales[i] = min(1.0, scale)
            if scale >= 1:
                self.released.discard(i)

    def _mean_ratio(self, i: int) -> float | None:
        """Residual ratio of block i in this step, the mean over all processes."""
        ratio = self._ratios.get(i)
        return None if ratio is None else self.trainer.context.mean(ratio.detach())

    def _set_bound(self, i: int) -> None:
        self.released.discard(i)
        self.bounds[i] = Bound(self.elapsed, self._ratios_now[i])
        self.constraint.measured.add(i)

    def _drop_bound(self, i: int) -> None:
        self.bounds.pop(i)
        self.constraint.measured.discard(i)

    # ---- selection of blocks

    def _select(self, cost: float, last: bool) -> None:
        """Constrain further blocks, the least important for their cost first, until blocks of ``cost`` in all are selected."""
        importance = self._importance_per_cost()
        if self.schedule.target.quantity in HELD and not self._target_allows_more(importance):
            return
        free = [i for i in importance if i not in self.bounds]
        reversible = [i for i in self.bounds if self.constraint.scales[i] > 0.25 and not last]
        # release a block that has become more than twice as important as one that is still free
        for i in sorted(reversible, key=lambda i: -importance[i]):
            other = min(free, key=lambda j: importance[j], default=None)
            if (
                other is not None
                and importance[i] > 2 * max(importance[other], 0.0)
                and importance[i] > 0
                and self._leaves_a_block(other, released=i)
            ):
                self._drop_bound(i)
                self.released.add(i)
                free.remove(other)
                self._set_bound(other)
                self.log(
                    f"{self.blocks[i].path} is released, because {self.blocks[other].path} is now less important for its cost"
                )
        while free:
            missing = cost - sum(self.costs[j] for j in self._selected())
            if missing > 1e-9 and self.schedule.select == "greedy":
                importance = self._importance_per_cost(without=self._selected())
            i = min(free, key=lambda i: importance[i])
            if missing <= (1e-9 if last else self.costs[i] / 2):
                break
            free.remove(i)
            if self._leaves_a_block(i):
                self._set_bound(i)

    def _selected(self) -> list[int]:
        """Blocks that are the identity or have a bound."""
        return [i for i, scale in enumerate(self.constraint.scales) if scale == 0 or i in self.bounds]

    def _leaves_a_block(self, i: int, released: int | None = None) -> bool:
        """Whether another block remains in the list that contains block i if that one is removed too."""
        container = self.blocks[i].container
        siblings = [j for j, block in enumerate(self.blocks) if block.container == container]
        others = len(self.trainer.model.get_submodule(container)._modules) - len(
            siblings
        )  # without a shortcut, they always stay
        selected = self._selected()
        return others + sum(j not in selected or j == released for j in siblings) > 1

    def _importance_per_cost(self, without: Collection[int] = ()) -> dict[int, float]:
        """Importance of each block that is not the identity yet, divided by its cost. Also updates the residual ratios.

        ``without``: blocks that are the identity while the others are measured.
        """
        candidates = [
            i for i, block in enumerate(self.blocks) if block.removable and self.constraint.scales[i] > 0 and i not in without
        ]
        examples = GREEDY_EXAMPLES if self.schedule.select == "greedy" else IMPORTANCE_EXAMPLES
        with self.constraint.bypassed(*without):
            rises, ratios = block_importance(self.trainer, self.constraint, candidates, examples)
        if not without:  # bounds begin at the ratios of the network as it is
            self._ratios_now = ratios
        importance = {i: math.copysign(abs(rise) ** RECOVERY_EXPONENT, rise) for i, rise in rises.items()}
        return {i: value / max(self.ranking_costs[i], 1e-12) for i, value in importance.items()}

    def _target_allows_more(self, importance: dict[int, float]) -> bool:
        """Whether the validation error, or loss, without the selected blocks is within the target.

        If not, blocks with a bound are released, the most important for their cost first, until it is.
        """
        if self.error_before is None:
            self.error_before = self._held_quantity()
        target = self.schedule.target
        allowed = self.error_before + target.value
        first = found = self._held_quantity() if self._selected() else self.error_before
        while found > allowed and self.bounds:
            most = max(self.bounds, key=lambda i: importance.get(i, 0.0))
            self._drop_bound(most)
            self.released.add(most)
            found = self._held_quantity()
        if first <= allowed:
            return True
        self.rounds = SELECTIONS
        self.log(
            f"no further block is removed: the validation {target.quantity} would rise from {self.error_before:.4g} to {first:.4g} "
            f"{HELD[target.quantity]}"
        )
        return False

    def _held_quantity(self) -> float:
        """The validation error in percent, or loss in nats, with all selected blocks as identities."""
        with self.constraint.bypassed(*self.bounds):
            found = self.trainer.measure("val", self.trainer.model)
        return found.loss if self.schedule.target.quantity == "loss" else found.top1

    # ---- the end of the constrain phase

    @torch.no_grad()
    def _delete_identities(self, whole: nn.Module | None = None) -> None:
        """Delete the selected blocks. ``whole``: the network as it was given, after which the gaps are mended."""
        trainer = self.trainer
        for i in self.released:
            self.constraint.scales[i] = 1.0
        for i in self.bounds:
            self.constraint.scales[i] = 0.0
            self.identity_at[self.blocks[i].path] = trainer.progress.done
        paths = [block.path for i, block in enumerate(self.blocks) if self.constraint.scales[i] == 0]
        self.bounds, self.constraint.measured = {}, set()
        gaps = find_gaps(trainer.model, self.blocks, paths) if whole is not None else []
        self.difference = delete_identities(trainer.model, paths, self.probe, self._detach)
        self.removed, self.finished = paths, True
        did = "have been deleted" if self.schedule.removal == "at-once" else "are the identity and have been deleted"
        self.log(f"{len(paths)} of {len(self.blocks)} blocks {did}")
        if whole is not None and self.schedule.mend != "none":
            self.mended = mend(trainer, whole, gaps, self.schedule.mend, self.log)
        estimate_norm_statistics(trainer)
        self._replace_model()

    def _replace_model(self) -> None:
        self.trainer.replace_model()
        if self.features is not None:
            self.features.clear()  # of the signals behind blocks that are gone
            self.trainer.run_eagerly()  # a compiled network would not call the hooks that see its signals

    def _features_are_over(self) -> bool:
        return self.trainer.progress.done >= self.schedule.features_until * self.trainer.total

    def _end_features(self) -> None:
        """Observe the signals inside the network and its teacher no more."""
        if self.features is None:
            return
        self.features.detach()
        self.features = None
        if self.trainer.speed.compile and self.finished and self.trainer.progress.done < self.trainer.total:
            self.trainer.replace_model()  # compiled again, without hooks

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, key) for key in _KEPT},
            "mended": [dataclasses.asdict(one) for one in self.mended],
            "lead": self.teacher.lead if self.teacher is not None else None,
            "scales": list(self.constraint.scales),
            "bounds": {i: [bound.started, bound.ratio, bound.weight] for i, bound in self.bounds.items()},
            "released": sorted(self.released),
            "history": [[after.epoch, after.ratios, after.identities] for after in self.history],
        }

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        state = {_OLD_KEYS.get(key, key): value for key, value in state.items()}
        for key in _KEPT:
            if key in state:
                setattr(self, key, state[key])
        if self.teacher is not None:
            self.teacher.lead = state.get("lead", math.nan)  # the first release did not write it
        self.mended = [Mended(**one) for one in state.get("mended", ())]
        self.constraint.scales = list(state["scales"])
        self.bounds = {i: Bound(*values) for i, values in state["bounds"].items()}
        self.constraint.measured = set(self.bounds)
        self.released = set(state["released"])
        self.history = [EpochRatios(*values) for values in state["history"]]
        if self._features_are_over():
            self._end_features()
        if self.finished:
            self._detach()
            delete_blocks(trainer.model, self.removed)
            self._replace_model()
