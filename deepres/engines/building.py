"""Build a network on one engine: what was chosen before, or the only one that was asked for. Nothing is measured but the margin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deepres.adapters import device_of, kept_modes
from deepres.engines.answers import LOW, Answers, has_close_calls
from deepres.engines.compare import MOST_SAID, Trial
from deepres.engines.engine import Engine, Runner
from deepres.engines.ghosts import for_engines
from deepres.engines.optimized import CHOICE, Choice, Optimized
from deepres.engines.registry import engines_for
from deepres.engines.source import Source
from deepres.errors import DeepresError, first_line


def wanted_answers(answers: Answers | Literal["auto"], device: torch.device) -> Answers:
    """``answers``, or those that are wanted on ``device`` where nothing that was measured says otherwise."""
    return answers if answers != "auto" else "exact" if device.type == "cpu" else "close"


def recomputes(precision: str, answers: str) -> bool:
    """Return whether close calls are computed again."""
    return answers == "exact" and precision in LOW


def build_choice(model: nn.Module, example: Tensor, choice: Choice | str | Path) -> Optimized:
    """Build what was chosen before, without measuring. A folder of ``Optimized.save`` is loaded, else the network is converted.

    Raises ``DeepresError`` for a file that holds no choice, where its engine cannot run here, and for a folder that cannot be loaded or
    is of other weights.
    """
    folder = None
    if not isinstance(choice, Choice):
        folder = Path(choice) if Path(choice).is_dir() else None
        choice = Choice.load(Path(choice) / CHOICE if folder is not None else choice)
    (engine,) = engines_for([choice.engine], device_of(model))
    if choice.shape:  # else it was made without an example, for inputs of any shape
        if tuple(example.shape[1:]) != choice.shape[1:]:
            raise DeepresError(f"the choice is for inputs of {choice.shape[1:]}, not {tuple(example.shape[1:])}; measure again")
        count = choice.shape[0]
        example = example[:1].expand(choice.shape).contiguous() if len(example) < count else example[:count]
    with kept_modes(model):
        model, _ = for_engines(model, [choice.engine], device_of(model))
        source = Source(model, example)
        runner = load_kept(engine, folder, source, choice) if folder is not None else None
        runner = runner or engine.build(source, example, choice.precision)
        exact = engine.exact(source, runner) if recomputes(choice.precision, choice.answers) else None
    return Optimized(runner, choice, exact)


def load_kept(engine: Engine, folder: Path, source: Source, choice: Choice) -> Runner | None:
    """The runner whose files are in ``folder``; None where the engine keeps none.

    Raises ``DeepresError`` where they cannot be read, and where they are not of the weights in ``source``.
    """
    try:
        runner = engine.load(folder, source, choice.precision)
    except DeepresError:
        raise
    except Exception as error:  # each library fails in ways of its own
        raise DeepresError(
            f"{folder}: its engine cannot be loaded ({first_line(error, MOST_SAID)}); run deepres optimize --again"
        ) from error
    if runner is not None and choice.weights not in ("", source.weights):
        raise DeepresError(f"{folder}: holds the engine of a network with other weights; run deepres optimize again")
    return runner


def build_only(source: Source, trial: Trial, answers: Answers | Literal["auto"]) -> Optimized:
    """The one engine that was asked for, where there is nothing to compare.

    Raises ``DeepresError`` for exact answers of a network that has no close calls.
    """
    wanted = wanted_answers(answers, source.example.device)
    choice = Choice(trial.engine.name, trial.precision, wanted, tuple(source.example.shape), weights=source.weights)
    runner = trial.engine.build(source, source.example, trial.precision)
    exact = trial.engine.exact(source, runner) if recomputes(trial.precision, wanted) else None
    optimized = Optimized(runner, choice, exact)
    logits = optimized(source.example)  # compiles, and measures the margin
    if exact is None or has_close_calls(logits):
        return optimized
    if answers == "exact":
        raise DeepresError(
            f"precision {trial.precision}: exact answers are those of two or more logits for each input, and the network gives "
            f"{tuple(logits.shape)}; give precision float32, or close answers"
        )
    return Optimized(runner, dataclasses.replace(optimized.choice, answers="close"), None)
