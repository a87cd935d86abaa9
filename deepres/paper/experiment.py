"""Experiments, each of which tests a claim, and the list of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepres.errors import DeepresError, nearest
from deepres.paper.lab import Curves, ExperimentScale, Lab, NetworkFamily, Outcome, Row, Trained

MARGIN = 1.0  # points of error within which two networks count as equal
ZERO = 1e-20  # a signal or gradient below this counts as zero
VANISHED = 1e-3  # a layer's gradient or signal has vanished below this share of the largest one


@dataclass(frozen=True)
class Experiment:
    """A claim and the function that tests it."""

    name: str
    title: str
    source: str
    cost: float  # in trainings of the deeper network of the quick scale for each seed, to plan a budget
    kind: NetworkFamily  # of the networks that it trains
    test: Callable[[Lab, Experiment], Outcome]

    def run(self, lab: Lab) -> Outcome:
        """Run the experiment. Raises ``DeepresError`` if the lab's scale has no such networks."""
        return self.test(lab.at(self.kind), self)

    def outcome(
        self,
        lab: Lab,
        claim: str,
        holds: bool,
        why: str,
        rows: list[Row],
        figures: tuple[Curves, ...] = (),
        *,
        likely: str = "",
    ) -> Outcome:
        """Make the outcome; ``likely`` is the probable reason, which is added to ``why`` if the claim does not hold."""
        return Outcome(
            self.name,
            self.title,
            self.source,
            claim,
            holds,
            why if holds or not likely else f"{why} {likely}",
            tuple(rows),
            figures,
            lab.scale.differs,
            lab.scale.seeds,
        )


EXPERIMENTS: dict[str, Experiment] = {}
Test = Callable[[Lab, Experiment], Outcome]


def claim(name: str, title: str, source: str, cost: float, kind: NetworkFamily) -> Callable[[Test], Test]:
    """Add the decorated function to the list of experiments."""

    def add(test: Test) -> Test:
        EXPERIMENTS[name] = Experiment(name, title, source, cost, kind, test)
        return test

    return add


def experiment(name: str) -> Experiment:
    """The experiment of that name. Raises ``DeepresError`` for an unknown name."""
    if name not in EXPERIMENTS:
        hint = nearest(name, EXPERIMENTS) or f"; there are {', '.join(EXPERIMENTS)}"
        raise DeepresError(f"unknown experiment {name!r}{hint}")
    return EXPERIMENTS[name]


def served(scale: ExperimentScale) -> list[Experiment]:
    """The experiments whose networks the scale has."""
    return [one for one in EXPERIMENTS.values() if scale.serving(one.kind) is not None]


def train_all(lab: Lab, net: str, **options: object) -> list[Trained]:
    """Train a network from each seed."""
    return [lab.train(net, seed, **options) for seed in lab.seeds]  # type: ignore[arg-type]


def train_row(label: str, runs: list[Trained]) -> Row:
    """Row of training errors."""
    return Row(label, tuple(run.train_error for run in runs))


def error_row(label: str, runs: list[Trained], paper: float | str | None = None) -> Row:
    """Row of test errors."""
    return Row(label, tuple(run.test_error for run in runs), paper=paper)


def clearly_less(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether the mean of ``one`` is lower by more than a standard deviation over the seeds; with one seed, by more than 2 %."""
    gap = statistics.fmean(other) - statistics.fmean(one)
    noise = max(statistics.stdev(one), statistics.stdev(other)) if len(one) > 1 else 0.02 * abs(statistics.fmean(other))
    return gap > noise


def evenness(sizes: Sequence[float]) -> float:
    """Smallest of ``sizes`` relative to the largest; 0 if the largest is below ``ZERO`` or there are none."""
    return min(sizes) / max(sizes) if sizes and max(sizes) > ZERO else 0.0


def curve(name: str, runs: list[Trained], what: str) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Line of a figure over the epochs, the mean over the seeds."""
    epochs = [record.epoch for record in runs[0].history]
    values = [[getattr(run.history[i], what) for run in runs] for i in range(len(epochs))]
    return name, tuple(map(float, epochs)), tuple(statistics.fmean(v) for v in values)
