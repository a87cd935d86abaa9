"""``shrink``: makes a network with fewer blocks, and reports on it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import as_written, device_of, find_blocks, kept_modes, logits_of
from deepres.callback import Callback
from deepres.data import Data
from deepres.deprecation import renamed, renamed_fields
from deepres.errors import DeepresError
from deepres.evaluation import Evaluation, measure, time_against
from deepres.evaluation.timing import from_first_process
from deepres.models import is_ours, need_layers, open_with_data
from deepres.models.options import OpenOptions
from deepres.nn import config, parameters
from deepres.shrinking.cost import staying_cost
from deepres.shrinking.curriculum import InverseCurriculum
from deepres.shrinking.mending import Mended
from deepres.shrinking.options import Mend, Removal, Selection, ShrinkOptions
from deepres.shrinking.schedule import EpochRatios, ShrinkSchedule
from deepres.shrinking.search import Attempt, fewest_blocks
from deepres.shrinking.target import HELD, Target
from deepres.training import Recipe, Run, train
from deepres.training import recipe as recipe_named
from deepres.training.distribute import is_first_process, pick_device
from deepres.training.loop import Result
from deepres.training.run import RUN_FILE, RunOptions

SHRINK_FILE = "shrink.json"
ALL_AT_ONCE: dict[str, Any] = {
    "head_first": 0.0,
    "depth_rate": 1.0,
    "frozen_norms": 0,
}  # what finetune does for a new last layer
RECIPE_NAME = "shrink"


@renamed_fields(kept_for_shape="not_removable", closed_at="identity_at", before="error_before", units="block_paths")
@dataclass(frozen=True)
class ShrinkResult:
    """Result of a run of Inverse Curriculum Training. Errors are in percent."""

    model: nn.Module  # an ordinary network of its class, in eval mode
    target: str
    blocks: tuple[int, int]  # number before and after
    params: tuple[int, int]  # number before and after
    removed: tuple[str, ...]  # paths of the removed blocks in the original network
    not_removable: tuple[str, ...]  # blocks that cannot be the identity: they change the signal's shape or open a stage
    identity_at: dict[str, int]  # path -> step after which the block was the identity
    # largest difference of the outputs with the blocks as identities and with the blocks deleted, relative to the largest output
    difference: float
    time: float  # of a forward pass relative to the whole network's, timed in alternating turns, median
    time_spread: tuple[float, float]  # quartiles of the ratios of the turns
    error_before: float | None  # validation error of the given network, if it was trained
    loss_before: float | None  # its validation loss, in nats
    result: Result
    history: tuple[EpochRatios, ...]
    block_paths: tuple[str, ...]  # of all blocks, in the order of the ratios in ``history``
    removal: Removal = "gradual"
    mended: tuple[Mended, ...] = ()  # what was fitted in place of deleted blocks
    attempts: tuple[Attempt, ...] = ()  # the runs of a search, of which this result is one

    def summary(self) -> list[str]:
        """Describe the result in sentences, with its figures."""
        low, high = self.time_spread
        removed = f"{len(self.removed)} of {self.blocks[0]} blocks were removed (target {self.target})"
        lines = [
            f"{removed} before the first step."
            if self.removal == "at-once"
            else f"{removed}; the outputs before and after the deletion differ by {self.difference:.1g} of the largest.",
            f"A forward pass takes {100 * self.time:.0f} % of the whole network's time (middle half of the turns {100 * low:.0f} to "
            f"{100 * high:.0f} %); {self.params[1]:,} of {self.params[0]:,} weights remain.",
            f"Validation error {self.result.val_error:.2f} %"
            + (f", {self.error_before:.2f} % before shrinking" if self.error_before is not None else "")
            + f"; test error {self.result.test.top1:.2f} % on {self.result.test.n:,} examples.",
        ]
        if Target.parse(self.target).quantity == "loss":
            best = next(one for one in self.result.history if one.epoch == self.result.best_epoch)
            was = f", {self.loss_before:.4f} before shrinking" if self.loss_before is not None else ""
            lines.append(f"Validation loss {best.val_loss:.4f} nats{was}; test loss {self.result.test.loss:.4f}.")
        if self.mended:
            fits = (f"{100 * one.before:.0f} to {100 * one.after:.0f} %" for one in self.mended)
            lines.append(
                f"In {len(self.mended)} places a fit replaces what was deleted; the signal's difference to the whole network's fell, "
                f"before training, from {', from '.join(fits)}."
            )
        if self.attempts:
            goal = Target.parse(self.target)
            tried = ", ".join(f"{one.rise:+.3g} with {one.blocks}" for one in self.attempts)
            lines.append(
                f"Of {len(self.attempts)} runs this is the smallest network within the target; change of the validation {goal.quantity} by "
                f"blocks that remain, in {goal.unit}: {tried}."
            )
        if self.not_removable:
            lines.append(
                f"{len(self.not_removable)} blocks are not removable, because they change the signal's shape or open a stage: "
                f"{', '.join(self.not_removable)}."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without the network."""
        keep = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("model", "result", "history", "mended", "attempts")
        }
        result = {"val_error": self.result.val_error, "test": self.result.test.to_dict(), "seconds": self.result.seconds}
        records = {key: [dataclasses.asdict(one) for one in getattr(self, key)] for key in ("history", "mended", "attempts")}
        return {**keep, "result": result, **records}


def shrink_recipe(model: nn.Module, before: Recipe | None = None) -> Recipe:
    """Recipe for shrinking a trained network: SGD from a learning rate of 0.05, or AdamW from 0.0005 for networks with layer norm.

    ``before``: the recipe that the network was trained with, if it is known. If half of its learning rate is higher, that is used,
    with its batch size.
    """
    if any(isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm") for m in model.modules()):
        usual = dataclasses.replace(recipe_named("transformer"), name=RECIPE_NAME, epochs=10, lr=5e-4)
    else:
        usual = dataclasses.replace(
            recipe_named("finetune"),
            name=RECIPE_NAME,
            epochs=10,
            head_first=0.0,
            depth_rate=1.0,
            frozen_norms=0,
            batch=128,
            lr=0.05,
            weight_decay=5e-4,
            augment="pad-crop-flip",
        )
    if before is None or before.optimizer != usual.optimizer:
        return usual
    lr = before.lr if before.name == RECIPE_NAME else before.lr / 2  # a recipe for shrinking has half of the rate already
    return dataclasses.replace(usual, lr=lr, batch=before.batch) if lr > usual.lr else usual


@renamed(press="constrain", say="log")
def shrink(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    target: str = "time=0.6",
    *,
    epochs: float | None = ShrinkOptions.epochs,
    recipe: Recipe | str | None = ShrinkOptions.recipe,
    learn: float | None = ShrinkOptions.learn,
    constrain: float | None = ShrinkOptions.constrain,
    distil: float | None = ShrinkOptions.distil,
    removal: Removal = ShrinkOptions.removal,
    select: Selection = ShrinkOptions.select,
    mend: Mend = ShrinkOptions.mend,
    features: float = ShrinkOptions.features,
    seed: int = ShrinkOptions.seed,
    weights: str | Path | None = OpenOptions.weights,
    size: int | None = OpenOptions.size,
    batch: int | None = RunOptions.batch,
    lr: float | None = RunOptions.lr,
    speed: str = RunOptions.speed,
    memory: str = RunOptions.memory,
    device: str = RunOptions.device,
    workers: int | None = RunOptions.workers,
    trained: bool | None = None,
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
    log: Callable[[str], None] = lambda text: None,
    **run: Any,
) -> ShrinkResult:
    """Train a network and remove the blocks that it needs least: Inverse Curriculum Training.

    >>> small = deepres.shrink("runs/r56", "cifar10", "time=0.6", out="runs/r56-small")
    >>> small.model  # an ordinary network of its class

    ``model``: a network with residual sites, a reference as ``open_model`` takes it, or the name of a network of ours, which is then
    trained from scratch. ``trained``: whether a module that is given is trained (default: yes). ``target``: what remains, as
    ``time=0.6``, ``macs=``, ``params=`` or ``blocks=`` (a share or a count), or the allowed rise of the validation error in points,
    ``error=+0.3``, or of the validation loss in nats, ``loss=+0.02``. With ``removal="at-once"``, such a rise is what remains after
    training, and the smallest network within it is searched by a run for each size that is tried. ``ShrinkOptions``, ``OpenOptions``
    and ``RunOptions`` explain the other options; ``run`` takes further fields of ``Run``.

    The given model is left unchanged. ``out``: folder to keep the run in; ``resume`` continues a run that was interrupted there.
    ``callbacks`` extend the training run. ``log`` receives remarks, one sentence each.

    Raises ``DeepresError`` for a target that cannot be met, for a network without removable blocks, and where ``train`` does.
    """
    goal = Target.parse(target)
    whole, opened, name, known = _open(model, data, weights, size, seed, log)
    trained = known if trained is None else trained
    chosen = recipe if recipe is not None else (shrink_recipe(whole, _recipe_of(model)) if trained else "fast-cifar")
    options: dict[str, Any] = {"learn": learn, "constrain": constrain, "distil": distil, "features": features}
    options |= {"removal": removal, "select": select, "mend": mend}
    computed = RunOptions(batch=batch, lr=lr, size=size, speed=speed, memory=memory, device=device, workers=workers)
    settings = Run(name, opened.name, chosen, str(out) if out else None, seed, epochs, **vars(computed), **run)
    search = trained and goal.quantity in HELD and removal == "at-once"
    schedule = ShrinkSchedule.from_options(Target("blocks", 0.5) if search else goal, trained, **options)
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    before = measure(whole.to(place), opened.val, opened.prepare, opened.classes, device=place) if trained else None

    def once(goal: Target, settings: Run) -> ShrinkResult:
        curriculum = InverseCurriculum(dataclasses.replace(schedule, target=goal), exact=settings.speed == "exact", log=log)
        copied, watching = copy.deepcopy(whole), [curriculum, *callbacks]
        result = train(settings, resume=resume, show=show, data=opened, model=copied, callbacks=watching)
        return _result_of(whole, curriculum, result, before)

    if search and before is not None:
        shrunk = _searched(goal, whole, opened, settings, once, before, log)
    else:
        shrunk = once(goal, settings)
    if out is not None and is_first_process():
        (Path(out) / SHRINK_FILE).write_text(json.dumps(shrunk.to_dict(), indent=1))
    return shrunk


def _searched(
    goal: Target,
    whole: nn.Module,
    data: Data,
    settings: Run,
    once: Callable[[Target, Run], ShrinkResult],
    before: Evaluation,
    log: Callable[[str], None],
) -> ShrinkResult:
    """The smallest network whose validation error, or loss, is within ``goal`` after its training; each size is a run of its own.

    Raises ``DeepresError`` where none is.
    """
    blocks = find_blocks(whole)
    going = sum(block.removable for block in blocks) - round(staying_cost(whole, blocks, [1.0] * len(blocks)))

    def quantity(found: Evaluation) -> float:
        return found.loss if goal.quantity == "loss" else found.top1

    def make(remaining: int) -> tuple[ShrinkResult, float]:
        out = f"{settings.out}/blocks-{remaining}" if settings.out is not None else None
        made = once(Target("blocks", remaining), dataclasses.replace(settings, out=out))
        after = measure(made.model, data.val, data.prepare, data.classes, device=device_of(made.model))
        rise = from_first_process(quantity(after) - quantity(before))  # all processes go on with the same size
        log(f"with {remaining} of {len(blocks)} blocks the validation {goal.quantity} changes by {rise:+.3g} {goal.unit}")
        return made, rise

    best, attempts = fewest_blocks(max(1, len(blocks) - going), len(blocks) - 1, make, goal.value)
    if best is None:
        closest = min(attempts, key=lambda one: one.rise)
        raise DeepresError(
            f"--target {goal}: no smaller network stays within it; {closest.blocks} of {len(blocks)} blocks come closest, at "
            f"{closest.rise:+.3g} {goal.unit}. Allow more, or train longer with --epochs"
        )
    if settings.out is not None and best.result.out is not None and is_first_process():
        shutil.copytree(best.result.out, settings.out, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
    return dataclasses.replace(best, target=str(goal), attempts=tuple(attempts))


def _result_of(whole: nn.Module, curriculum: InverseCurriculum, result: Result, before: Evaluation | None) -> ShrinkResult:
    """What ``shrink`` returns, with the time of a forward pass of ``whole`` and of the result in alternation."""
    small, blocks = result.model, curriculum.blocks
    ratio, spread = from_first_process(time_ratio(whole.to(curriculum.probe.device), small, curriculum.probe))
    return ShrinkResult(
        model=small,
        target=str(curriculum.schedule.target),
        blocks=(len(blocks), len(blocks) - len(curriculum.removed)),
        params=(parameters(whole), parameters(small)),
        removed=tuple(curriculum.removed),
        not_removable=tuple(block.path for block in blocks if not block.removable),
        identity_at=dict(curriculum.identity_at),
        difference=curriculum.difference,
        time=ratio,
        time_spread=spread,
        error_before=before.top1 if before is not None else None,
        loss_before=before.loss if before is not None else None,
        result=result,
        history=tuple(curriculum.history),
        block_paths=tuple(block.path for block in blocks),
        removal=curriculum.schedule.removal,
        mended=tuple(curriculum.mended),
    )


def _open(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    weights: str | Path | None,
    size: int | None,
    seed: int,
    log: Callable[[str], None],
) -> tuple[nn.Module, Data, str, bool]:
    """(network, data prepared for it, its name, whether it is trained)."""
    if not isinstance(model, nn.Module) and is_ours(str(model)):
        if weights is not None:
            raise DeepresError("--weights is for networks of other libraries; give a file of ours as the model itself")
        config(str(model))  # raises for an unknown name before any data is read
    torch.manual_seed(seed)
    paired = open_with_data(model, data, weights=weights, size=size)
    need_layers(paired.model, paired.opened.name)
    paired.need_fit()
    for remark in paired.remarks:
        log(remark)
    network = as_written(copy.deepcopy(paired.model)) if isinstance(model, nn.Module) else paired.model
    return network, paired.data, type(model).__name__ if isinstance(model, nn.Module) else str(model), paired.opened.trained


def _recipe_of(model: nn.Module | str | Path) -> Recipe | None:
    """Recipe of a run's folder; None for any other model."""
    if isinstance(model, nn.Module) or not (Path(model) / RUN_FILE).is_file():
        return None
    found = Run.read(model).recipe
    assert isinstance(found, Recipe)
    return found


def time_ratio(whole: nn.Module, small: nn.Module, inputs: Tensor, *, turns: int = 15) -> tuple[float, tuple[float, float]]:
    """Time of a forward pass of ``small`` relative to ``whole``, in eval mode, all inputs in one batch.

    Returns the median of the ratios of alternating turns, and their quartiles.
    """
    with kept_modes(whole), kept_modes(small):
        return time_against(
            partial(logits_of, whole.eval()), partial(logits_of, small.eval()), inputs, max(1, len(inputs)), turns=turns
        )
