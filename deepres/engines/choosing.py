"""``optimize``: run a network on the fastest engine of this machine, with the answers of the original."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepres.adapters import device_of, kept_modes
from deepres.data import Data
from deepres.deprecation import renamed
from deepres.engines.answers import LOW, Answers
from deepres.engines.building import build_choice, build_only, load_kept, recomputes, wanted_answers
from deepres.engines.compare import BESIDE, MOST_SAID, Trial, compare, fastest_engine, slower_than_whole
from deepres.engines.engine import DTYPES, Engine, Precision
from deepres.engines.ghosts import for_engines
from deepres.engines.optimized import Candidate, Choice, Optimized
from deepres.engines.options import OptimizeOptions
from deepres.engines.registry import ENGINES, engines_for
from deepres.engines.remembered import folder_of, key_of, recall, remember
from deepres.engines.source import Source
from deepres.errors import DeepresError, first_line
from deepres.evaluation.timing import call_times
from deepres.ghosting import Ghost
from deepres.models.exported import ExportedModel

MUCH = 1.1  # close calls that cost more than a tenth of the time are worth a question


@renamed(settle="recompute")
def optimize(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    engine: str | Sequence[str] = OptimizeOptions.engine,
    precision: Precision | Literal["auto"] = OptimizeOptions.precision,
    answers: Answers | Literal["auto"] = OptimizeOptions.answers,
    images: Tensor | None = None,
    data: Data | None = None,
    error: float = OptimizeOptions.error,
    choice: Choice | str | Path | None = None,
    again: bool = OptimizeOptions.again,
    measure: bool = False,
    seconds: float = OptimizeOptions.seconds,
    log: Callable[[str], None] = lambda text: None,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
    recompute: bool | None = None,
) -> Optimized:
    """Make the same network for inference only, on the fastest engine of this machine that keeps its answers.

    ``example``: a batch as the network will get it, (N, C, H, W) or tokens (N, L). Engines are measured on it in alternating turns, and
    the choice is remembered for this network, these images, this machine and the installed versions. Without an example nothing can be
    measured, and PyTorch compiles at the first call. Any number of inputs can be given to the result.

    ``engine``: "auto" for all that are installed, a name of ``deepres.engines.ENGINES``, or several names.
    ``precision``: "auto" for float32 and bf16 where the processor computes it, "float32", "bf16", "fp16" (GPUs), "int8".
    ``answers``: "exact" computes an input whose two best logits are too close for low precision once more in float32, so that the
    predicted class is the original's; "close" leaves it. "auto" measures both on ``images`` and is exact, unless that costs more than
    a tenth of the speed and close answers change at most ``error`` percent of the predicted classes; ``Optimized.advice`` says what
    was found. Without ``images`` it is exact on a CPU, and close on a GPU, where looking at the logits would wait for the device.
    ``images``: inputs as they will come, to compare answers and to count close calls on; noise has many more close calls than
    photographs. Of a ghost with early exits, exact answers are those of float32.
    ``data``, ``error``: int8 is tried too, calibrated on the training split; it is refused where the error on the validation split rises
    by more than ``error`` points. As int8 changes answers, it is taken with ``answers="close"`` or ``precision="int8"``.
    ``choice``: build this one, or the one that a file or ``Optimized.save`` holds, without measuring.
    ``again``: measure again what is remembered. ``measure``: measure even if only one engine and precision was asked for.
    ``seconds``: time that the turns may take, building not included: half of it for all candidates, the rest for those that are not yet
    told apart from the fastest. Those that never are stand in ``Candidate.level``. ``log`` is told what is under way.

    ``dtype``, ``compile`` and ``recompute`` are what earlier versions took instead of ``precision``, ``engine`` and ``answers``.

    ``model`` is left as it was, and may be a ghost. Raises ``DeepresError`` for an engine that is not known or installed, where none can
    run the network, for a ghost whose gates choose by input, and for an exported file, whose engine was chosen when it was exported.
    """
    _check_given(model, example=example, images=images)
    engine, precision, answers = _old_keywords(engine, precision, answers, dtype, compile, recompute)
    device = device_of(model)
    if choice is not None:
        if example is None:
            raise DeepresError("a choice is built for inputs of one shape: give an example")
        return build_choice(model, example.to(device), choice)
    with kept_modes(model):
        model, engine = for_engines(model, engine, device)
        answers = _answers_of(model, precision, answers)
        if example is None:
            return _unmeasured(model, engine, precision, wanted_answers(answers, device))
        source = Source(model, example.to(device))
        trials = plan(engine, precision, device, data)
        trials = [trial for trial in trials if trial.engine.is_worth_trying(source.example)] or trials
        return _chosen(
            source,
            trials,
            answers,
            images.to(device) if images is not None else None,
            data=data,
            error=error,
            again=again,
            measure=measure,
            seconds=seconds,
            log=log,
        )


def _chosen(
    source: Source,
    trials: Sequence[Trial],
    answers: Answers | Literal["auto"],
    images: Tensor | None,
    *,
    data: Data | None,
    error: float,
    again: bool,
    measure: bool,
    seconds: float,
    log: Callable[[str], None],
) -> Optimized:
    """The fastest of ``trials`` with these answers, as it was measured now or before; where there is but one, it may need no measuring."""
    wanted = wanted_answers(answers, source.example.device)
    int8 = all(trial.precision == "int8" for trial in trials)
    measures_answers = answers == "auto" and wanted == "exact" and images is not None
    decides = measures_answers and trials[0].precision in LOW
    if len(trials) == 1 and not (measure or decides or int8):
        return build_only(source, trials[0], answers)
    images = source.example if images is None else images
    key = key_of(source, images, len(source.example), [trial.name for trial in trials], *([data.name, error] if data else []))
    candidates = () if again else recall(key)
    if not candidates:
        candidates = _measured(source, trials, images, data, error, seconds, log)
        if _kept_int8(trials, folder_of(key)):
            remember(key, candidates)
    best = _best(candidates, "close" if int8 else wanted, error if measures_answers else None)
    optimized = _built(source, best, trials, folder_of(key))
    optimized.candidates = tuple(candidates)
    optimized.slower_than_whole = slower_than_whole(candidates, best)
    if answers == "auto":
        optimized.advice = advice(candidates, best)
    return optimized


def _answers_of(model: nn.Module, precision: str, answers: Answers | Literal["auto"]) -> Answers | Literal["auto"]:
    """The answers that are asked for; of a ghost with early exits in low precision, close ones.

    Raises ``DeepresError`` where exact ones are asked for by name.
    """
    if not isinstance(model, Ghost) or precision not in LOW:
        return answers
    if answers == "exact":
        raise DeepresError(
            f"precision {precision}: changes at which exit an input of a ghost leaves, so exact answers are computed in float32; give "
            "another precision, or close answers"
        )
    return "close"


def _check_given(model: nn.Module, **inputs: Tensor | None) -> None:
    """Raises ``DeepresError`` for an exported file, and for inputs without any."""
    for name, given in inputs.items():
        if given is not None and not given.numel():
            raise DeepresError(f"{name}: holds no inputs (it is of shape {tuple(given.shape)}); give one or more")
    if isinstance(model, ExportedModel):
        raise DeepresError(
            f"{model.path}: is an exported file, which {model.engine} runs already; give the network or ghost that it was exported from"
        )


def _kept_int8(trials: Sequence[Trial], folder: Path) -> bool:
    """Save runners whose calibration takes longer than loading them. False where ``folder`` cannot be written, which is no error."""
    try:
        for trial in trials:
            if trial.precision == "int8" and trial.runner is not None:
                folder.mkdir(parents=True, exist_ok=True)
                trial.runner.save(folder)
    except OSError:
        return False
    return True


def _measured(
    source: Source,
    trials: Sequence[Trial],
    images: Tensor,
    data: Data | None,
    error: float,
    seconds: float,
    log: Callable[[str], None],
) -> tuple[Candidate, ...]:
    """Every candidate, the fastest first, and at last what was measured beside them."""
    for trial in trials:
        if trial.precision == "int8":
            assert data is not None
            try:
                quantized = trial.engine.quantize(source, data, error=error, log=log)
            except Exception as refused:  # the libraries fail in ways of their own; the other candidates are still tried
                trial.found = [Candidate(trial.engine.name, trial.precision, "close", problem=first_line(refused, MOST_SAID))]
            else:
                trial.runner, trial.rise = quantized.runner, quantized.rise
    beside = compare(source, trials, images, seconds=seconds, log=log)
    return (*sorted((one for trial in trials for one in trial.found), key=lambda one: -one.ratio), *beside)


def _built(source: Source, best: Candidate, trials: Sequence[Trial], folder: Path) -> Optimized:
    """The candidate as it was measured just now, else built once more; int8 is loaded from ``folder``."""
    trial = next(one for one in trials if (one.engine.name, one.precision) == (best.engine, best.precision))
    choice = dataclasses.replace(best.chosen(source.example.shape), weights=source.weights)
    runner, exact = trial.runner, trial.exact
    if runner is None and best.precision == "int8":
        runner = load_kept(trial.engine, folder, source, choice)
    runner = runner or trial.engine.build(source, source.example, trial.precision)
    if recomputes(best.precision, best.answers):
        exact = exact or trial.engine.exact(source, runner)
    return Optimized(runner, choice, exact if recomputes(best.precision, best.answers) else None)


def plan(engine: str | Sequence[str], precision: str, device: torch.device, data: Data | None = None) -> list[Trial]:
    """The engines and precisions to try on ``device``; int8 where there are data to calibrate it.

    Raises ``DeepresError`` where no engine computes in ``precision``.
    """
    engines = engines_for(engine, device)
    int8 = [one for one in engines if one.calibrates(device) and precision in ("auto", "int8")]
    if precision == "int8":
        if not int8:
            raise DeepresError("precision int8: " + _int8_missing(engines, device))
        if data is None:
            raise DeepresError(
                "precision int8: it is calibrated on training images and measured on the validation split; give data"
            )
        return [Trial(one, "int8") for one in int8]
    trials = [Trial(one, kind) for one in engines for kind in one.precisions(device) if precision in ("auto", kind)]
    if not trials:  # asked for by name, it may be emulated
        trials = [Trial(one, kind) for one in engines for kind in one.emulated if kind == precision]
    if not trials:
        can = sorted({kind for one in engines for kind in one.precisions(device)})
        who = ", ".join(one.name for one in engines)
        raise DeepresError(f"precision {precision}: not computed by {who} on this machine; there is {', '.join(can)}")
    return [*trials, *(Trial(one, "int8") for one in int8 if data is not None)]


def _int8_missing(engines: Sequence[Engine], device: torch.device) -> str:
    if reason := ENGINES["openvino"].missing(device):
        return reason
    if not {"openvino", "torch"} & {engine.name for engine in engines}:
        return "is made for the engines openvino and torch; name one of them, or auto"
    return "nncf (for openvino) or torchao (for torch) is not installed; pip install 'deepres[export]'"


def _best(candidates: Sequence[Candidate], answers: Answers, error: float | None) -> Candidate:
    """The fastest with these answers; ``error``: the limit of ``settle``, where answers are chosen by what was measured."""
    best = fastest_engine(candidates, answers)
    if best is None:
        how = "with the same answers" if answers == "exact" else "as it was asked for"
        raise DeepresError(f"no engine can run this network {how}: {_problems(candidates)}")
    return best if error is None or answers == "close" else settle(candidates, best, error)


def settle(candidates: Sequence[Candidate], exact: Candidate, error: float) -> Candidate:
    """``exact``, or the fastest with close answers where exact ones cost too much for what they change.

    That is more than a tenth of the speed, where at most ``error`` percent of the predicted classes change, so that the error cannot
    rise by more points. int8 is not taken unasked.
    """
    close = fastest_engine([one for one in candidates if one.precision != "int8"], "close")
    if close is None or close.ratio < MUCH * exact.ratio or 100 * close.changed > error * close.images:
        return exact
    return close


def advice(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """A sentence on what exact answers cost, where that is more than a tenth of the time; else an empty string."""
    exact = fastest_engine(candidates, "exact")
    if chosen.answers == "close" and chosen.precision in LOW and exact is not None and chosen.ratio >= MUCH * exact.ratio:
        return (
            f"exact answers would cost {1 - exact.ratio / chosen.ratio:.0%} of the speed, and close ones change {chosen.changed} of "
            f"{chosen.images} answers; answers='exact' computes close calls again"
        )
    other = fastest_engine(candidates, "close")
    if other is None or chosen.answers != "exact" or other.ratio < MUCH * chosen.ratio:
        return ""
    what = f"{other.name}, within {other.rise:+.2f} points of the error," if other.rise is not None else f"{other.name}"
    return (
        f"exact answers cost {1 - chosen.ratio / other.ratio:.0%} of the speed: {what} gives {other.rate:,.1f} images/s and changes "
        f"{other.changed} of {other.images} answers; answers='close' takes it"
    )


def _old_keywords(
    engine: Any, precision: Any, answers: Any, dtype: torch.dtype | None, compile: bool | None, recompute: bool | None
) -> tuple[Any, Any, Any]:
    """(engine, precision, answers), from the arguments of version 0.1 where these are given. A list of one engine is this engine."""
    if not isinstance(engine, str) and len(engine) == 1:
        engine = engine[0]
    old = {"dtype": dtype, "compile": compile, "recompute": recompute}
    given = [name for name, value in old.items() if value is not None]
    if not given:
        return engine, precision, answers
    new = {"dtype": "precision=", "compile": "engine='torch' or 'torch-eager'", "recompute": "answers='exact' or 'close'"}
    message = "; ".join(f"optimize({name}=) is now {new[name]}" for name in given)
    warnings.warn(f"{message}; the old names go in the next version", DeprecationWarning, stacklevel=4)
    engine = "torch-eager" if compile is False else "torch" if engine == "auto" else engine
    if dtype is not None:
        found = [name for name, kind in DTYPES.items() if kind == dtype]
        if not found:
            raise DeepresError(f"{dtype}: no engine computes in it; there are {', '.join(map(str, DTYPES.values()))}")
        precision = found[0]
    if recompute is not None:
        answers = "exact" if recompute else "close"
    return engine, precision, answers


def _unmeasured(model: nn.Module, engine: str | Sequence[str], precision: str, answers: Answers) -> Optimized:
    """PyTorch alone, which compiles at the first call."""
    device = device_of(model)
    name = "torch" if engine == "auto" else engine if isinstance(engine, str) else engine[0]
    (one,) = engines_for([name], device)
    if name not in ("torch", "torch-eager"):
        raise DeepresError(f"engine {name}: converts for inputs of one shape; give optimize an example")
    can = one.precisions(device)
    kind = can[-1] if precision == "auto" else plan([name], precision, device)[0].precision
    source = Source(model, torch.empty(0))
    runner = one.build(source, source.example, kind)
    exact = one.exact(source, runner) if recomputes(kind, answers) else None
    return Optimized(runner, Choice(name, kind, answers, ()), exact)


def _problems(candidates: Sequence[Candidate]) -> str:
    tried = [one for one in candidates if one.engine not in BESIDE]
    return "; ".join(f"{one.name}: {one.problem or f'{one.changed} of {one.images} answers change'}" for one in tried)


@torch.no_grad()
def throughput(model: nn.Module, images: Tensor, *, repeats: int = 5) -> float:
    """Median throughput of ``repeats`` calls in eval mode, after two to warm up, in images per second."""
    with kept_modes(model):
        times = call_times(partial(model.eval(), images), images.device, repeats=repeats, warmup=2)
    return len(images) / statistics.median(times)
