"""Measure engines against each other and against the network as it is: time in alternating turns, and answers."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.engines.answers import LOW, Answers, changed_answers, has_close_calls, measure_close_calls
from deepres.engines.engine import Engine, Precision, Runner
from deepres.engines.optimized import Candidate
from deepres.engines.racing import race, speeds, told_apart
from deepres.engines.source import Source
from deepres.errors import first_line
from deepres.ghosting import Ghost

AS_IS = "as it is"
WHOLE = "whole network"  # of a ghost with early exits
BESIDE = (AS_IS, WHOLE)  # measured beside the engines, and never chosen
MOST_SAID = 200  # characters of a library's error


@dataclass(eq=False)
class Trial:
    """An engine and a precision that are tried."""

    engine: Engine
    precision: Precision
    runner: Runner | None = None
    exact: nn.Module | None = None
    rise: float | None = None  # of the validation error, where that was measured
    found: list[Candidate] = field(default_factory=list)  # one for each kind of answers

    @property
    def name(self) -> str:
        return f"{self.engine.name} {self.precision}"


@torch.no_grad()
def compare(
    source: Source,
    trials: Sequence[Trial],
    images: Tensor,
    *,
    seconds: float,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[Candidate, ...]:
    """Build every trial for batches of the shape of ``source.example`` and note in it what was measured.

    ``images``: inputs as the network will get them, at least a batch, on which answers are compared and close calls counted.
    ``seconds``: of ``race``. Returns what was measured beside the trials and is not to be chosen: the network as it is, in float32, and
    of a ghost with early exits its whole network on the same engines.
    """
    example, batch = source.example, len(source.example)
    for trial in trials:
        if trial.found:  # it could not be built
            continue
        log(f"building {trial.name}")
        _build(source, trial)
    running = {trial.name: trial for trial in trials if trial.runner is not None}
    as_is = partial(logits_of, source.model)
    calls: dict[str, Callable[[], object]] = {AS_IS: partial(as_is, example)}
    calls |= {name: partial(trial.runner, example) for name, trial in running.items() if trial.runner is not None}
    whole = {f"{WHOLE} {trial.name}": trial for trial in _whole_network(source, running.values())}
    calls |= {name: partial(trial.runner, example) for name, trial in whole.items() if trial.runner is not None}
    log("measuring in turns")
    kinds = {name: trial.precision for name, trial in running.items()}
    times = race(calls, kinds, example.device, reference=AS_IS, seconds=seconds, log=log)
    original = _over(as_is, images, batch)
    found: list[tuple[Candidate, list[float]]] = []  # with the seconds of a batch, close calls included
    for name, trial in running.items():
        log(f"comparing the answers of {name}")
        assert trial.runner is not None
        logits = _over(trial.runner, images, batch)
        answers: Answers = "exact" if trial.precision == "float32" else "close"
        found.append((_candidate(trial, answers, times, batch, original, logits), times[name]))
        if trial.precision in LOW and has_close_calls(logits):
            trial.exact = trial.engine.exact(source, trial.runner)
        if trial.exact is not None:
            again = measure_close_calls(logits, trial.exact, images, batch)
            slower = {**times, name: [value + again.seconds for value in times[name]]}
            exact = _candidate(trial, "exact", slower, batch, original, again.logits)
            found.append((replace(exact, close=again.share, margin=again.margin), slower[name]))
    for trial in running.values():
        trial.found = [replace(one, level=_level(one, mine, found)) for one, mine in found if one.name == trial.name]
    beside = [Candidate(AS_IS, "float32", "exact", *_rates(times[AS_IS], batch), ratio=1.0, images=len(images))]
    speed = speeds(times, AS_IS)
    for name, trial in whole.items():
        beside.append(Candidate(WHOLE, trial.precision, "close", *_rates(times[name], batch), ratio=speed[name]))
    return tuple(beside)


def _build(source: Source, trial: Trial) -> None:
    """Build the runner of ``trial``, if it has none, and call it; or note the problem."""
    try:
        trial.runner = trial.runner or trial.engine.build(source, source.example, trial.precision)
        trial.runner(source.example)
    except Exception as error:  # a compiler or converter fails in its own ways; the other engines are still tried
        trial.runner = None
        trial.found = [Candidate(trial.engine.name, trial.precision, "exact", problem=first_line(error, MOST_SAID))]


def _whole_network(source: Source, trials: Iterable[Trial]) -> list[Trial]:
    """Build a ghost's whole network on the engines of its segments; int8 would have to be calibrated once more."""
    if not isinstance(source.model, Ghost):
        return []
    source.model.route(False)
    whole = Source(copy.deepcopy(source.model.net), source.example)
    built = [Trial(trial.engine, trial.precision) for trial in trials if trial.precision != "int8"]
    for trial in built:
        _build(whole, trial)
    return [trial for trial in built if trial.runner is not None]


def slower_than_whole(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """A sentence where a ghost's whole network is faster than the ghost on ``chosen``'s engine, else an empty string.

    They are compared in the same precision; a ghost in int8 is compared with the fastest whole network that was measured.
    """
    whole = max(
        (one for one in candidates if one.engine == WHOLE and chosen.precision in (one.precision, "int8")),
        key=lambda one: one.ratio,
        default=None,
    )
    if whole is None or whole.ratio <= chosen.ratio:
        return ""
    return (
        f"the whole network is faster than the ghost on this engine and batch: {whole.rate:,.1f} images/s in {whole.precision} against "
        f"{chosen.rate:,.1f} in {chosen.precision}; optimize the network that the ghost was made of"
    )


def _candidate(
    trial: Trial, answers: Answers, times: Mapping[str, list[float]], batch: int, original: Tensor, logits: Tensor
) -> Candidate:
    return Candidate(
        trial.engine.name,
        trial.precision,
        answers,
        *_rates(times[trial.name], batch),
        ratio=speeds(times, AS_IS)[trial.name],
        changed=changed_answers(original, logits),
        images=original[..., 0].numel(),
        difference=float((original - logits).abs().max()),
        rise=trial.rise,
    )


def _level(one: Candidate, mine: list[float], found: Sequence[tuple[Candidate, list[float]]]) -> tuple[str, ...]:
    """Names of the candidates that measuring could not tell apart from ``one``."""
    return tuple(sorted({other.name for other, theirs in found if other.name != one.name and not told_apart(mine, theirs)}))


def _rates(times: Sequence[float], batch: int) -> tuple[float, float, float]:
    return batch / statistics.median(times), batch / max(times), batch / min(times)


def _over(call: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    """Logits of all images, in batches as they will come."""
    return torch.cat([call(part).float() for part in images.split(batch)])


def fastest_engine(candidates: Sequence[Candidate], answers: Answers) -> Candidate | None:
    """The fastest candidate whose answers are of the wanted kind. Answers that are to be exact must not have changed."""
    eligible = [
        one
        for one in candidates
        if not one.problem and one.engine not in BESIDE and (answers == "close" or (one.answers == "exact" and not one.changed))
    ]
    return max(eligible, key=lambda one: one.ratio, default=None)
