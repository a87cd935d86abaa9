"""``shrink``: a network with less depth, and what came of it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.data import Data
from deepres.errors import DeepresError
from deepres.evaluation import measure, time_against
from deepres.evaluation.timing import from_first_process
from deepres.models import open_with_data
from deepres.nn import config, parameters
from deepres.shrinking.curriculum import InverseCurriculum
from deepres.shrinking.schedule import EpochSizes, Schedule
from deepres.shrinking.target import Target
from deepres.training import Recipe, Run, train
from deepres.training import recipe as recipe_named
from deepres.training.loop import Result
from deepres.training.run import RUN_FILE

SHRINK_FILE = "shrink.json"
RECIPE_NAME = "shrink"  # of the recipe


@dataclass(frozen=True)
class ShrinkResult:
    """What a run of Inverse Curriculum Training came to. Errors in percent."""

    model: nn.Module  # an ordinary network of its class, in eval mode
    target: str
    blocks: tuple[int, int]  # before and after
    params: tuple[int, int]
    removed: tuple[str, ...]  # paths of the blocks that are gone, as they were called before
    kept_for_shape: tuple[str, ...]  # blocks that cannot be the identity, since they change the signal's shape or open a stage
    closed_at: dict[str, int]  # path -> step after which the block was the identity
    difference: float  # of the outputs before and after the deletion, against the largest output
    time: float  # of a forward pass against the whole network's, measured side by side
    time_spread: tuple[float, float]  # the middle half of the ratios, turn by turn
    before: float | None  # validation error of the network that was given, where it was trained
    result: Result
    history: tuple[EpochSizes, ...]
    units: tuple[str, ...]  # paths of all blocks, in the order of ``history``'s sizes

    def summary(self) -> list[str]:
        """What happened, with its figures."""
        low, high = self.time_spread
        said = [
            f"{len(self.removed)} of {self.blocks[0]} blocks are gone (target {self.target}); the outputs before and after their "
            f"deletion differ by {self.difference:.1g} of the largest.",
            f"A forward pass takes {100 * self.time:.0f} % of the whole network's time (middle half of the turns {100 * low:.0f} to "
            f"{100 * high:.0f} %); {self.params[1]:,} of {self.params[0]:,} weights are left.",
            f"Validation error {self.result.val_error:.2f} %"
            + (f", {self.before:.2f} % before shrinking" if self.before is not None else "")
            + f"; test error {self.result.test.top1:.2f} % on {self.result.test.n:,} examples.",
        ]
        if self.kept_for_shape:
            said.append(
                f"{len(self.kept_for_shape)} blocks stay whatever they do, as they change the signal's shape or their stage is "
                f"built on them: {', '.join(self.kept_for_shape)}."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        keep = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("model", "result", "history")}
        result = {"val_error": self.result.val_error, "test": self.result.test.to_dict(), "seconds": self.result.seconds}
        return {**keep, "result": result, "history": [dataclasses.asdict(sizes) for sizes in self.history]}


def shrink_recipe(model: nn.Module, before: Recipe | None = None) -> Recipe:
    """From trained weights: a rate high enough to move them, cosine; AdamW for networks with layer norm, as they were trained.

    ``before``: the recipe that it was trained with, where that is known. Half of its rate, with its batch, is taken if it is higher.
    """
    if any(isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm") for m in model.modules()):
        usual = dataclasses.replace(recipe_named("transformer"), name=RECIPE_NAME, epochs=10, lr=5e-4)
    else:
        usual = dataclasses.replace(
            recipe_named("finetune"), name=RECIPE_NAME, batch=128, lr=0.05, weight_decay=5e-4, augment="pad-crop-flip"
        )
    if before is None or before.optimizer != usual.optimizer:
        return usual
    lr = before.lr if before.name == RECIPE_NAME else before.lr / 2  # shrunk before: that was half already
    return dataclasses.replace(usual, lr=lr, batch=before.batch) if lr > usual.lr else usual


def shrink(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    target: str = "time=0.6",
    *,
    epochs: float | None = None,
    recipe: Recipe | str | None = None,
    out: str | Path | None = None,
    trained: bool | None = None,
    learn: float | None = None,
    press: float | None = None,
    distil: float | None = None,
    weights: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
    say: Callable[[str], None] = lambda text: None,
    **run: Any,
) -> ShrinkResult:
    """Train with the whole depth, then give back what is not needed: Inverse Curriculum Training.

    >>> small = deepres.shrink("runs/r56", "cifar10", "time=0.6", out="runs/r56-small")
    >>> small.model  # an ordinary network, of the class that it was

    ``model``: a network with residual sites, a reference as ``open_model`` takes it, or the name of a network of ours, which is then
    trained from scratch. ``trained`` says which of the two it is where a module is given (default: it is trained). ``target``: what
    shall be left: ``time=0.6``, ``macs=``, ``params=``, ``blocks=`` (a share or a count), or how far the validation error may rise,
    ``error=+0.3``. ``learn`` and ``press``: shares of the run before the first block is pressed on, and by which all are identities.
    ``distil``: weight of the given network's own answers, where it was trained. More options are those of ``Run``: ``seed``,
    ``speed``, ``batch``, ``lr``, ``size``, ...

    The model that is given is left as it was. With ``out`` the run is kept there, and ``resume`` goes on where it was interrupted.

    Raises ``DeepresError`` for a target that cannot be met, a network without blocks that could go, and all that ``train`` raises.
    """
    goal = Target.parse(target)
    whole, opened, name, known = _open(model, data, weights, run.get("size"), run.get("seed", 0), say)
    trained = known if trained is None else trained
    chosen = recipe if recipe is not None else (shrink_recipe(whole, _recipe_of(model)) if trained else "fast-cifar")
    asked: dict[str, Any] = {"learn": learn, "press": press, "distil": distil}
    plan = dataclasses.replace(
        Schedule.usual(goal, trained), **{key: value for key, value in asked.items() if value is not None}
    )
    settings = Run(name, opened.name, chosen, str(out) if out else None, epochs=epochs, **run)
    curriculum = InverseCurriculum(plan, exact=settings.speed == "exact", say=say)
    before = measure(whole, opened.val, opened.prepare, opened.classes).top1 if trained else None
    result = train(settings, resume=resume, show=show, data=opened, model=copy.deepcopy(whole), callbacks=[curriculum])
    small = result.model
    ratio, spread = from_first_process(time_ratio(whole.to(curriculum.probe.device), small, curriculum.probe))
    units = curriculum.units
    shrunk = ShrinkResult(
        model=small,
        target=str(goal),
        blocks=(len(units), len(units) - len(curriculum.removed)),
        params=(parameters(whole), parameters(small)),
        removed=tuple(curriculum.removed),
        kept_for_shape=tuple(unit.path for unit in units if not unit.removable),
        closed_at=dict(curriculum.closed_at),
        difference=curriculum.difference,
        time=ratio,
        time_spread=spread,
        before=before,
        result=result,
        history=tuple(curriculum.history),
        units=tuple(unit.path for unit in units),
    )
    if out is not None:
        (Path(out) / SHRINK_FILE).write_text(json.dumps(shrunk.to_dict(), indent=1))
    return shrunk


def _open(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    weights: str | Path | None,
    size: int | None,
    seed: int,
    say: Callable[[str], None],
) -> tuple[nn.Module, Data, str, bool]:
    """(network, data prepared as it wants it, its name, whether it was trained before)."""
    if not isinstance(model, nn.Module) and not (":" in str(model) or Path(model).exists()):
        if weights is not None:
            raise DeepresError("--weights goes with another library's network; a file of ours is itself the model")
        config(str(model))  # a wrong name is told before any data is read
    torch.manual_seed(seed)
    paired = open_with_data(model, data, weights=weights, size=size)
    paired.need_fit()
    for remark in paired.remarks:
        say(remark)
    network = copy.deepcopy(paired.model) if isinstance(model, nn.Module) else paired.model
    return network, paired.data, type(model).__name__ if isinstance(model, nn.Module) else str(model), paired.opened.trained


def _recipe_of(model: nn.Module | str | Path) -> Recipe | None:
    """What a run of ours was trained with."""
    if isinstance(model, nn.Module) or not (Path(model) / RUN_FILE).is_file():
        return None
    found = Run.read(model).recipe
    assert isinstance(found, Recipe)
    return found


def time_ratio(whole: nn.Module, small: nn.Module, inputs: Tensor, *, turns: int = 15) -> tuple[float, tuple[float, float]]:
    """``time_against`` for a forward pass of each in eval mode, all inputs at once."""
    was = [model.training for model in (whole, small)]
    found = time_against(
        partial(logits_of, whole.eval()), partial(logits_of, small.eval()), inputs, max(1, len(inputs)), turns=turns
    )
    for model, training in zip((whole, small), was, strict=True):
        model.train(training)
    return found
