"""The limit of the error holds for the setting that is chosen, as often as it says, on a population whose errors are known."""

import statistics
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from deepres.adapters.segments import Segment
from deepres.ghosting import Point, Settings
from deepres.ghosting.candidates import frontier
from deepres.ghosting.confirm import EXITS_ALONE, last_confirmed, path_of, rise_bound, within_error
from deepres.ghosting.context import Trace
from deepres.ghosting.fit import Costs
from deepres.ghosting.recorded import Passes

CLASSES, EXITS, HELD, FRESH, LIMIT = 10, 2, 1000, 4000, 0.5
COSTS = Costs(
    blocks=torch.full((3,), 0.32),
    outside=torch.tensor([0.04, 0, 0, 0]),
    branches=torch.full((3,), 0.32),
    gates=torch.zeros(3),
    exits=torch.full((3,), 0.02),
)


class Known:
    """A ghost of three segments, whose input holds the logits of its exits and of its network."""

    segments, gates, temperature = [Segment((c,), ()) for c in range(EXITS + 1)], (), 1.0

    def record(
        self, x: torch.Tensor, settings: Settings
    ) -> tuple[torch.Tensor, Trace, list[tuple[torch.Tensor, torch.Tensor] | None]]:
        *exits, last = x.unflatten(1, (EXITS + 1, CLASSES)).unbind(1)
        nothing = torch.zeros(len(x), dtype=torch.bool)
        trace = Trace(torch.ones(len(x), EXITS + 1, dtype=torch.bool), nothing.long() - 1, nothing)
        return last, trace, [*((one, one.softmax(1).amax(1)) for one in exits), None]


class Population:
    """Many examples: what is true of a setting is what happens on all of them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        n = 100_000
        self.labels = torch.randint(CLASSES, (n,), generator=self.generator)
        shared, difficulty = (f(n, CLASSES, generator=self.generator) for f in (torch.randn, torch.rand))
        logits = []
        for depth in (2.6, 3.2, 3.6):  # the deeper, the larger the margin of the right class
            noise = 0.7 * (shared + torch.randn(n, CLASSES, generator=self.generator))
            margin = (depth - 3 * difficulty[:, :1]) * F.one_hot(self.labels, CLASSES)
            logits.append(2 * (margin + noise))
        self.inputs = torch.cat(logits, 1)
        self.all = Passes(Known(), [(self.inputs, self.labels)])  # type: ignore[arg-type]
        self._true: dict[Settings, tuple[float, float]] = {}

    def draw(self, n: int) -> Passes:
        rows = torch.randint(len(self.labels), (n,), generator=self.generator)
        return Passes(Known(), [(self.inputs[rows], self.labels[rows])])  # type: ignore[arg-type]

    def true(self, settings: Settings) -> tuple[float, float]:
        """(rise of the error in points, time)."""
        if settings not in self._true:
            points = [self.all.of(one).point(one, self.all.whole, self.labels, COSTS) for one in (Settings(), settings)]
            self._true[settings] = points[1].error - points[0].error, points[1].time
        return self._true[settings]


def fixed_order(mine: list[Point], fresh: Passes) -> Settings:
    """The reference: the points on the Pareto front one by one, the slowest first (Angelopoulos et al. 2021)."""
    found, right = Settings(), fresh.whole.argmax(1) == fresh.labels
    for point in mine[::-1]:
        here = fresh.of(point.settings).answers(point.settings, fresh.whole) == fresh.labels
        if rise_bound(int((right & ~here).sum()), int((here & ~right).sum()), len(fresh)) > LIMIT:
            break
        found = point.settings
    return found


@pytest.fixture(scope="module")
def chosen() -> tuple[Population, dict[str, list[Settings]]]:
    """The settings that each way chooses, over many draws of examples."""
    population, found = Population(), dict[str, list[Settings]]()
    for _ in range(12):
        held = population.draw(HELD)
        points = frontier(held, COSTS, kinds=())
        mine = within_error(points, points[0].error, LIMIT, HELD)[EXITS_ALONE]
        path = path_of(mine, held)
        for _ in range(12):
            fresh = population.draw(FRESH)
            found.setdefault("fixed order", []).append(fixed_order(mine, fresh))
            for confidence in (0.9, 0.5):
                found.setdefault(f"{confidence}", []).append(last_confirmed(path, fresh, LIMIT, confidence))
    return population, found


def test_the_limit_holds_as_often_as_it_says(chosen: tuple[Population, dict[str, list[Settings]]]) -> None:
    population, found = chosen
    rises = [population.true(settings)[0] for settings in found["0.9"]]
    n = len(rises)
    assert n == 144
    assert sum(rise > LIMIT for rise in rises) < 0.1 * n + 2 * (0.09 * n) ** 0.5
    average = statistics.fmean(population.true(settings)[0] for settings in found["0.5"])
    assert statistics.fmean(rises) < average < LIMIT + 0.05


def test_fewer_settings_are_lost_than_in_a_fixed_order(chosen: tuple[Population, dict[str, list[Settings]]]) -> None:
    population, found = chosen
    lost = {way: sum(settings.whole for settings in each) for way, each in found.items()}
    time = {way: statistics.fmean(population.true(settings)[1] for settings in each) for way, each in found.items()}
    assert lost["0.9"] < lost["fixed order"] and time["0.5"] < time["0.9"] < time["fixed order"]


def test_a_path_begins_at_the_network_and_lets_ever_more_examples_exit() -> None:
    held = Population().draw(500)
    settings = Settings(exit_threshold=0.7, exits=(0, 1), average=True)
    path = path_of([Point(settings, 0.0, 0.5, 1.0, 0.5)], held)
    exited = [held.of(one).point(one, held.whole, held.labels, COSTS).exited for one in path]
    assert exited[0] == pytest.approx(0.01, abs=0.002) and exited[-1] == pytest.approx(1)
    assert all(0 < b - a < 0.02 for a, b in pairwise(exited))
    fronts = [Point(Settings(skip_threshold=float(i)), 0.0, i / 20, 1.0, 0.0) for i in range(20)]
    assert [one.skip_threshold for one in path_of(fronts, held)] == [19, 16, 14, 11, 8, 5, 3, 0]
