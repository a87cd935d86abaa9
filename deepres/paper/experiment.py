"""What an experiment is, and the list of them: a claim, a few lines that test it, and what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepres.errors import DeepresError, nearest
from deepres.paper.lab import Curves, Kind, Lab, Outcome, Row, Scale, Trained

MARGIN = 1.0  # points of error under which two networks count as equal
VANISHED = 1e-3  # share of the largest layer's gradient or signal below which a layer's has vanished


@dataclass(frozen=True)
class Experiment:
    """``cost`` is in trainings of the deeper of the quick scale's two networks, per seed: for planning a budget."""

    name: str
    title: str
    source: str
    cost: float
    kind: Kind  # which networks it trains
    test: Callable[[Lab, Experiment], Outcome]

    def run(self, lab: Lab) -> Outcome:
        """Raises ``DeepresError`` where the lab's scale has no such networks."""
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


def claim(name: str, title: str, source: str, cost: float, kind: Kind) -> Callable[[Test], Test]:
    """Put a function on the list."""

    def add(test: Test) -> Test:
        EXPERIMENTS[name] = Experiment(name, title, source, cost, kind, test)
        return test

    return add


def experiment(name: str) -> Experiment:
    """An experiment by name."""
    if name not in EXPERIMENTS:
        hint = nearest(name, EXPERIMENTS) or f"; there are {', '.join(EXPERIMENTS)}"
        raise DeepresError(f"unknown experiment {name!r}{hint}")
    return EXPERIMENTS[name]


def served(scale: Scale) -> list[Experiment]:
    """Those that a scale has networks for."""
    return [one for one in EXPERIMENTS.values() if scale.serving(one.kind) is not None]


def train_all(lab: Lab, net: str, **options: object) -> list[Trained]:
    """A network from each seed."""
    return [lab.train(net, seed, **options) for seed in lab.seeds]  # type: ignore[arg-type]


def train_row(label: str, runs: list[Trained]) -> Row:
    return Row(label, tuple(run.train_error for run in runs))


def error_row(label: str, runs: list[Trained], paper: float | str | None = None) -> Row:
    return Row(label, tuple(run.test_error for run in runs), paper=paper)


def clearly_less(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the means differ by more than the seeds do; with one seed, by more than 2 %."""
    gap = statistics.fmean(other) - statistics.fmean(one)
    noise = max(statistics.stdev(one), statistics.stdev(other)) if len(one) > 1 else 0.02 * abs(statistics.fmean(other))
    return gap > noise


def curve(name: str, runs: list[Trained], what: str) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """A line over the epochs: the mean over the seeds."""
    epochs = [record.epoch for record in runs[0].history]
    values = [[getattr(run.history[i], what) for run in runs] for i in range(len(epochs))]
    return name, tuple(map(float, epochs)), tuple(statistics.fmean(v) for v in values)
