"""Candidates are timed until they are told apart. Their calls advance a clock that takes the place of time."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch

from deepres.engines.racing import BURST, TURNS, race, speeds, told_apart
from deepres.evaluation import timing

CPU = torch.device("cpu")


class Machine:
    """Its clock advances by the seconds of a call, and by what it does besides, at random."""

    def __init__(self, noise: float) -> None:
        self.time, self.noise, self.random = 0.0, noise, random.Random(0)
        self.calls: list[str] = []

    def run(self, name: str, seconds: float) -> None:
        self.calls.append(name)
        self.time += seconds * (1 + self.noise * self.random.expovariate(1.0))


def measured(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], limit: float, noise: float = 0.0
) -> tuple[dict[str, list[float]], Machine, list[str]]:
    """``race`` of candidates whose names end in their kind, with the network as it is, which takes two seconds."""
    machine = Machine(noise)
    monkeypatch.setattr(timing, "now", lambda device: machine.time)
    calls: dict[str, Callable[[], object]] = {"as it is": partial(machine.run, "as it is", 2.0)}
    calls |= {name: partial(machine.run, name, value) for name, value in seconds.items()}
    said: list[str] = []
    kinds = {name: name.split()[-1] for name in seconds}
    times = race(calls, kinds, CPU, reference="as it is", seconds=limit, log=said.append)
    return times, machine, said


def test_clear_differences_take_the_first_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    times, machine, said = measured(monkeypatch, {"a float32": 1.0, "b float32": 1.3, "c bf16": 0.5}, limit=1000.0)
    assert {len(values) for values in times.values()} == {TURNS} and not said
    assert speeds(times, "as it is") == pytest.approx({"as it is": 1.0, "a float32": 2.0, "b float32": 2 / 1.3, "c bf16": 4.0})
    assert machine.calls[:5] == ["as it is"] * 4 + ["a float32"]  # warmed up, and one call a turn


def test_noise_does_not_choose_between_close_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is 4 % faster and noise of half a call is 12 times as much: the first turns cannot tell, more of them can."""
    given = {"a float32": 1.04, "b float32": 1.0, "c float32": 1.9, "d bf16": 0.5}
    times, _, said = measured(monkeypatch, given, limit=5000.0, noise=0.5)
    assert len(times["a float32"]) == len(times["b float32"]) > TURNS
    assert len(times["as it is"]) == TURNS and len(times["c float32"]) < len(times["a float32"]) > len(times["d bf16"])
    assert told_apart(times["a float32"], times["b float32"])
    found = speeds(times, "as it is")
    assert found["a float32"] < found["b float32"] and "a float32, b float32" in said[-1]


def test_the_limit_ends_what_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    times, machine, _ = measured(monkeypatch, {"a float32": 1.0, "b float32": 1.0}, limit=200.0)
    assert len(times["a float32"]) > TURNS and not told_apart(times["a float32"], times["b float32"])
    assert 200.0 <= machine.time <= 200.0 + 4 * 4.0 + 2 * 2.0  # warming up, and the turns under way
    times, machine, _ = measured(monkeypatch, {"a float32": 1.0, "b float32": 1.0}, limit=0.0)
    assert len(times["a float32"]) == timing.LEAST_TURNS


def test_a_turn_of_short_calls_holds_many(monkeypatch: pytest.MonkeyPatch) -> None:
    times, machine, _ = measured(monkeypatch, {"a float32": 0.001, "b float32": 0.002}, limit=100.0)
    assert times["a float32"] == pytest.approx([0.001] * TURNS) and speeds(times, "as it is")["a float32"] == pytest.approx(
        2000
    )
    assert machine.calls.count("a float32") == 4 + TURNS * BURST / 0.001


def test_speeds_do_not_depend_on_one_disturbed_candidate() -> None:
    """Turns by a factor of two, and the fastest candidate disturbed by another: ratios to it alone would exchange the other two."""
    turns = [1.0, 2.0, 1.0, 1.5]
    times = {"as it is": [4.0 * t for t in turns], "a": [2.0 * t for t in turns], "b": [1.9 * t for t in turns[:3]]}
    times["fastest"] = [0.1 * t * disturbed for t, disturbed in zip(turns, (1.0, 2.0, 1.0, 2.0), strict=True)]
    found = speeds(times, "as it is")
    assert found["as it is"] == 1.0 and found["a"] == pytest.approx(2.0) and found["b"] == pytest.approx(4.0 / 1.9)
    assert found["fastest"] == pytest.approx(40.0, rel=1.0)


def test_told_apart() -> None:
    assert told_apart([1.2, 2.4, 1.3], [1.0, 2.0, 1.1]) and told_apart([1.0, 2.0, 1.1], [1.2, 2.4, 1.3])
    assert not told_apart([1.2, 2.4], [1.0, 2.0])  # two turns say nothing
    assert not told_apart([1.01] * 7, [1.0] * 7) and told_apart([1.01] * 8, [1.0] * 8)  # 2 / 2**7 > 0.01 >= 2 / 2**8
    assert not told_apart([1.0] * 50, [1.0] * 50)
    chance = random.Random(1)
    runs = [[(chance.random(), chance.random()) for _ in range(20)] for _ in range(2000)]
    assert sum(told_apart([a for a, _ in run], [b for _, b in run]) for run in runs) / 2000 < 0.012
