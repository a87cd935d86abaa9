"""The search for the smallest network whose error, after training, is within a target."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.data import open_data
from deepres.evaluation import measure
from deepres.shrinking import ShrinkSchedule, Target
from deepres.shrinking.search import Attempt, fewest_blocks

EXACT = {"speed": "exact", "memory": "all", "show": False, "removal": "at-once", "epochs": 0.3}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return deepres.train(Run("resnet20-cifar", "digits", "digits", epochs=3, width=0.5, speed="exact"), show=False).model


def rise_of(model: nn.Module, whole: nn.Module) -> float:
    data = open_data("digits")
    after, before = (measure(one, data.val, data.prepare, data.classes).top1 for one in (model, whole))
    return after - before


def test_bisection_finds_the_least_that_trying_all_finds() -> None:
    draw = random.Random(0)
    for least, most in ((1, 1), (1, 2), (3, 23), (1, 54)):
        for _ in range(20):
            rises = dict(enumerate(sorted((draw.uniform(0, 1) for _ in range(least, most + 1)), reverse=True), least))
            allowed = draw.uniform(-0.1, 1.1)
            found, attempts = fewest_blocks(least, most, lambda n, rises=rises: (n, rises[n]), allowed)
            assert found == next((n for n in range(least, most + 1) if rises[n] <= allowed), None)
            assert len(attempts) <= (most - least + 1).bit_length() and len({one.blocks for one in attempts}) == len(attempts)
            assert all(one.rise == rises[one.blocks] for one in attempts)


def test_a_rise_that_is_not_monotone_still_ends_within_the_target() -> None:
    for rises in itertools.product((0.0, 1.0), repeat=5):
        found, attempts = fewest_blocks(0, 4, lambda n, rises=rises: (n, rises[n]), 0.5)
        assert found is None or rises[found] <= 0.5
        assert found == min((one.blocks for one in attempts if one.rise <= 0.5), default=None)


def test_the_result_is_the_smallest_of_the_runs_within_the_target(trained: nn.Module, tmp_path: Path) -> None:
    small = deepres.shrink(trained, "digits", "error=+5", out=tmp_path, **EXACT)
    within = [one.blocks for one in small.attempts if one.rise <= 5]
    assert small.blocks == (9, min(within)) and small.target == "error=+5" and len(small.attempts) >= 2
    kept = deepres.load(tmp_path)  # the folder holds the chosen one as any run's does
    assert rise_of(kept, trained) == pytest.approx(rise_of(small.model, trained)) and rise_of(kept, trained) <= 5
    for one in small.attempts:  # each rise is that of the network in its folder
        assert rise_of(deepres.load(tmp_path / f"blocks-{one.blocks}"), trained) == pytest.approx(one.rise, abs=1e-6)
    told = ", ".join(f"{one.rise:+.3g} with {one.blocks}" for one in small.attempts)
    assert f"of the validation error by blocks that remain, in points: {told}." in " ".join(small.summary())
    written = json.loads((tmp_path / "shrink.json").read_text())
    assert [Attempt(**one) for one in written["attempts"]] == list(small.attempts)

    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("blocks-*/checkpoints/*")}
    again = deepres.shrink(trained, "digits", "error=+5", out=tmp_path, resume=True, **EXACT)
    assert again.attempts == small.attempts  # nothing is trained a second time
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.glob("blocks-*/checkpoints/*")} != {}


def test_the_search_asks_for_sizes_that_there_are(trained: nn.Module) -> None:
    """The first stage of three keeps one of its removable blocks, so three remain at least."""
    small = deepres.shrink(trained, "digits", "error=+100", **EXACT)
    assert small.blocks == (9, 3) and min(one.blocks for one in small.attempts) == 3


def test_a_target_that_no_size_meets_is_an_error_with_the_closest(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        DeepresError,
        match=r"--target error=\+0: no smaller network stays within it; \d of 9 blocks come closest, at .* points\.",
    ):
        deepres.shrink(trained, "digits", "error=+0", out=tmp_path, **{**EXACT, "lr": 1.0})
    assert not (tmp_path / "shrink.json").exists() and (tmp_path / "blocks-8").is_dir()


def test_one_run_at_once_cannot_hold_an_error() -> None:
    with pytest.raises(DeepresError, match="tries several sizes"):
        ShrinkSchedule(Target("loss", 0.02), 0.0, 0.1, removal="at-once")
