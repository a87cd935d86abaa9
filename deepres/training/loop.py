"""``train`` and ``resume``: epochs until the run is done, then one test of the best weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.callback import Callback
from deepres.data import Data
from deepres.errors import DeepresError, first_line, lacks_memory
from deepres.evaluation import Evaluation, describe_machine, measure
from deepres.exits.supervision import DeepSupervision
from deepres.models import annotate, is_ours
from deepres.nn import config
from deepres.nn.fused import ONE_VALUE
from deepres.nn.transformer_zoo import TRANSFORMERS
from deepres.training import checkpoint, memory
from deepres.training.deprecated import callbacks_from
from deepres.training.distribute import DistributedContext, join_processes
from deepres.training.epoch import finish_epoch, train_epoch
from deepres.training.folder import claim_folder, leave_folder
from deepres.training.fusion import undo_acceleration
from deepres.training.network import Opening, open_given, open_run, prepared_as_before, starting_weights, usual_recipe
from deepres.training.progress import Progress, Record, read_log
from deepres.training.recipes import Recipe
from deepres.training.reporter import Reporter
from deepres.training.run import Run
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness
from deepres.training.stopping import stoppable
from deepres.training.trainer import BEST, LAST, Trainer


@dataclass(frozen=True)
class Result:
    """Result of ``train``. The test set was used once, after everything had been chosen."""

    run: Run
    model: nn.Module  # with the weights of the best validation error, in eval mode
    history: list[Record]
    best_epoch: int
    val_error: float  # of the best epoch, %
    test: Evaluation
    seconds: float
    speed: str  # the mode that was used
    out: Path | None


def train(
    run: Run,
    *,
    resume: bool = False,
    show: bool = True,
    data: Data | None = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    **old: Any,
) -> Result:
    """Train a network as ``run`` says.

    >>> result = deepres.train(deepres.Run("resnet20-cifar", "digits", epochs=5, out="runs/digits"))
    >>> result.test.top1

    ``resume`` continues from the newest checkpoint in ``run.out``, in mid-epoch if need be; without one it starts anew.
    ``data`` and ``model`` stand in for those that ``run`` names. ``callbacks`` extend the run: see ``deepres.Callback``; the
    arguments ``watch``, ``tap`` and ``curriculum`` of earlier versions still work, with a ``DeprecationWarning``. Under
    ``torchrun`` all processes call this alike.

    Raises ``DeepresError`` for what cannot be trained, ``NonFinite`` before a step that would ruin the weights, and
    ``Interrupted`` after Ctrl-C or SIGTERM, once the run is saved.
    """
    callbacks = [*callbacks, *callbacks_from(old)]
    with join_processes(run.device) as context:
        run = dataclasses.replace(run, out=context.broadcast(run.out))  # a default name may hold a time of day
        if model is None:
            run = dataclasses.replace(run, init=starting_weights(run))
        if model is None and is_ours(run.net) and run.net not in TRANSFORMERS:
            config(run.net, width=run.width, **run.options)  # a wrong name is told before any data is read
        if not context.is_main:
            context.barrier()  # the first process decodes and fills the cache
        opened = open_run(run, data) if model is None else open_given(run, model, data)
        if context.is_main:
            context.barrier()
        opened.data.need_training()
        if run.recipe == "auto":
            run = dataclasses.replace(run, recipe="language" if opened.data.is_text else usual_recipe(opened.model))
        assert isinstance(run.recipe, Recipe)
        callbacks = [Reporter(opened.remarks, show=show), *_callbacks_of(run.recipe, callbacks)]
        out = Path(run.out) if run.out else None
        made: list[Path] = []
        if out is not None and context.is_main:
            made = claim_folder(out, run, resume)
        context.barrier()
        with exactness(SPEEDS.get(run.speed, SPEEDS["float32"])):
            try:
                with _errors_in_words(run, context.device):
                    return _train(run, opened, context, resume, callbacks)
            except DeepresError:
                if out is not None and context.is_main:
                    leave_folder(out, made)
                raise


@contextlib.contextmanager
def _errors_in_words(run: Run, device: torch.device) -> Iterator[None]:
    """Raise ``DeepresError`` in place of PyTorch's errors on a batch that is too small for batch norm, or too large for the memory."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(ONE_VALUE):
            raise
        raise DeepresError(
            f"{run.net}: batch norm cannot normalise one value per channel ({str(error).split(', ')[-1]}); raise --batch "
            "or --size, or take a network without batch norm"
        ) from error
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise DeepresError(
            f"out of memory on {device} ({first_line(error)}); lower --batch, --size or --width, "
            "or set --memory to what may be used"
        ) from error


def _callbacks_of(recipe: Recipe, given: Sequence[Callback]) -> list[Callback]:
    """The callbacks that ``recipe`` asks for, before those that were given.

    Raises ``DeepresError`` for callbacks that do not work together.
    """
    asked: list[Callback] = [DeepSupervision(recipe.exits)] if recipe.exits else []
    if asked and any(callback.changes_network for callback in given):
        raise DeepresError(
            "early exits cannot be trained while a callback changes the network; train them afterwards, with --init"
        )
    return [*asked, *given]


def _train(
    run: Run,
    opened: Opening,
    context: DistributedContext,
    resume: bool,
    callbacks: Sequence[Callback],
) -> Result:
    out = Path(run.out) if run.out else None
    state = checkpoint.read_newest(out / checkpoint.FOLDER, context.device) if resume and out else None
    if state is not None and run.speed == "auto":
        run = dataclasses.replace(run, speed=state["speed"])
    assert isinstance(run.recipe, Recipe)
    data = opened.data
    if resume and out is not None:
        data = prepared_as_before(data, out / BEST)
    try:
        trainer = Trainer(run, data, context, opened.model, callbacks)
    except BaseException:
        _make_ordinary(opened.model)
        raise
    if state is not None:
        trainer.progress = Progress(**state["progress"])  # where callbacks begin
    results: list[Result] = []
    with trainer.heap(), stoppable() as stop, contextlib.ExitStack() as ends:
        ends.callback(lambda: _make_ordinary(opened.model, trainer.model))  # two, where a callback replaced the first
        for callback in trainer.callbacks:
            callback.run_begins(trainer)
            ends.callback(lambda one: one.run_ends(trainer, results[0] if results else None), callback)
        if state is not None:
            checkpoint.restore(trainer, state)
        done = trainer.progress.done
        history = [Record(**line) for line in read_log(out) if line["step"] <= done] if out and state is not None else []
        # a step that is counted but not its epoch: the run was interrupted before its last validation
        while trainer.progress.done < trainer.total or trainer.progress.step:
            train_epoch(trainer, stop)
            history.append(finish_epoch(trainer))
        results.append(_conclude(trainer, history, out))
    return results[0]


def _make_ordinary(*models: nn.Module) -> None:
    """Undo what a run does to the classes of networks' modules, whose owner gets the networks back."""
    for model in models:
        memory.recompute(model, memory.RecomputePlan())
        undo_acceleration(model)


def _conclude(trainer: Trainer, history: list[Record], out: Path | None) -> Result:
    """Load the best weights and test them: the only look at the test set that counts."""
    trainer.keep_weights(LAST)
    progress = trainer.progress
    val_error = next((one.val_error for one in history if one.epoch == progress.best_epoch), progress.best)
    if math.isinf(progress.best):  # a callback changed the network after the last validation
        found = trainer.measure("val")
        progress.best, progress.best_epoch, val_error = trainer.score(found), progress.epoch, found.top1
        trainer.keep_best()
    trainer.load_best()
    final, data, run = trainer.deploy(), trainer.data, trainer.run
    test = measure(
        final,
        data.test,
        data.prepare,
        data.classes,
        device=trainer.context.device,
        layout=trainer.speed.layout,
        share=trainer.context.shard,
        workers=run.workers,
    )
    if out is not None and trainer.context.is_main:
        summary = {
            "best_epoch": progress.best_epoch,
            "val_error": val_error,
            "seconds": progress.seconds,
            "speed": trainer.speed.name,
            "torch": torch.__version__,
            "machine": describe_machine(trainer.context.device),
            "test": test.to_dict(),
            "data": data.report(),
        }
        (out / "result.json").write_text(json.dumps(summary, indent=1))
    annotate(final, classes=list(data.classes), prepare=data.prepare.to_notes(), data=run.data)
    trainer.context.barrier()  # what the first process wrote is there for all, when they return
    _make_ordinary(final)
    return Result(run, final.eval(), history, progress.best_epoch, val_error, test, progress.seconds, trainer.speed.name, out)


def resume(out: str | Path, *, show: bool = True) -> Result:
    """Continue the run in a folder with the settings saved there. A finished one is only tested again."""
    return train(dataclasses.replace(Run.read(out), out=str(out)), resume=True, show=show)
