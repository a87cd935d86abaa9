"""A ghost with early exits on an engine: the answers and the depth of the ghost in float32, and int8 within the allowed loss."""

import dataclasses
from pathlib import Path

import pytest
import torch
from ghost_helpers import X, ghost

import deepres
from deepres import DeepresError
from deepres.data import Data, open_data
from deepres.engines import Optimized, build_choice
from deepres.engines.compare import WHOLE, fastest_engine, slower_than_whole
from deepres.engines.inputs import some_inputs
from deepres.engines.openvino_segments import GhostRunner
from deepres.engines.optimized import Candidate
from deepres.engines.segmenting import exit_thresholds
from deepres.exits import ExitHead
from deepres.ghosting import Ghost, Settings
from deepres.ghosting.fit import fit_ghost


@torch.no_grad()
@pytest.mark.parametrize(("average", "gates"), [(True, False), (False, True)])
def test_the_engine_answers_as_the_ghost_does(average: bool, gates: bool) -> None:
    made = ghost(average, gates)
    fast = deepres.optimize(made, X, engine="openvino", precision="float32")
    assert isinstance(fast.runner, GhostRunner)
    for rows in (1, 5, 24):
        torch.testing.assert_close(fast(X[:rows]), made(X[:rows], trace=True), rtol=1e-4, atol=1e-5)
        assert made.trace is not None and torch.equal(fast.exited_at, made.trace.exited_at)
    assert len(set(fast.exited_at.tolist())) >= 3
    assert fast(X[:0]).shape == (0, 3) and fast.exited_at.shape == (0,)


@pytest.fixture(scope="module")
def on_digits() -> tuple[Ghost, Data]:
    """A ghost of an untrained network, whose exit alone tells digits apart, and few digits."""
    torch.manual_seed(0)
    data = open_data("digits")
    net = deepres.create("resnet8-cifar", in_channels=1, width=0.5)
    images, _ = some_inputs(data.train, data.prepare, 256)
    with torch.no_grad():
        for _ in range(20):
            net.train()(images)
    made = Ghost(net.eval(), most=1)
    fit_ghost(made, data, gates=False, examples=256)
    last = max(c for c, head in enumerate(made.exits) if isinstance(head, ExitHead))
    made.settings = Settings(exit_threshold=0.5, exits=(last,))
    return made, dataclasses.replace(data, train=data.train.take(torch.arange(96)))


def errors(model: torch.nn.Module, data: Data) -> float:
    return deepres.evaluation.measure(model, data.val, data.prepare, data.classes).top1


@torch.no_grad()
def test_int8_is_within_the_allowed_rise_and_kept(on_digits: tuple[Ghost, Data], tmp_path: Path) -> None:
    made, data = on_digits
    images = some_inputs(data.val, data.prepare, 64)[0]
    wanted = {"data": data, "error": 3.0, "precision": "int8", "engine": "openvino", "seconds": 0.1}
    fast = deepres.optimize(made, images[:16], images=images, **wanted)
    assert fast.choice.precision == "int8" and errors(fast, data) <= errors(made, data) + 3.0 < 60
    assert int((fast.exited_at >= 0).sum()) > 0
    built = build_choice(made, images[:16], fast.save(tmp_path / "fast"))
    torch.testing.assert_close(
        built(images[:16]), fast(images[:16]), rtol=1e-2, atol=0.05
    )  # parts in bf16, fused in another order
    remembered = deepres.optimize(made, images[:16], images=images, **wanted)
    torch.testing.assert_close(remembered(images[:16]), fast(images[:16]), rtol=1e-2, atol=0.05)
    assert remembered.candidates == fast.candidates
    made.settings, before = dataclasses.replace(made.settings, exit_threshold=0.9), made.settings
    try:  # other settings are another ghost, and nothing of it is remembered
        other = deepres.optimize(made, images[:16], images=images, **wanted)
        assert isinstance(other, Optimized) and other.candidates != fast.candidates
        assert int((other.exited_at >= 0).sum()) < int((fast.exited_at >= 0).sum())
    finally:
        made.settings = before
    with pytest.raises(DeepresError, match="int8 raises the error on 143 validation images"):
        deepres.optimize(made, images[:16], images=images, **{**wanted, "error": -101.0})


def test_gates_that_decide_for_each_input_are_refused() -> None:
    made = Ghost(deepres.create("resnet8-cifar", in_channels=1, width=0.25).eval(), Settings(skip_threshold=0.0))
    with pytest.raises(DeepresError, match="the ghost's gates choose for each input which blocks run"):
        deepres.optimize(made, torch.zeros(4, 1, 8, 8), engine="openvino", precision="float32")


def test_a_ghost_that_is_slower_than_its_network_is_told() -> None:
    """Compared in the ghost's precision, and where it is in int8 with the fastest."""
    whole = [Candidate(WHOLE, "float32", "close", 50, ratio=2.0), Candidate(WHOLE, "bf16", "close", 100, ratio=4.0)]
    for precision, ratio, says in (
        ("float32", 2.5, ""),
        ("bf16", 4.1, ""),
        ("float32", 1.5, "50.0 images/s in float32 against 30.0 in float32"),
        ("bf16", 3.5, "100.0 images/s in bf16 against 30.0 in bf16"),
        ("int8", 3.0, "100.0 images/s in bf16 against 30.0 in int8"),
    ):
        said = slower_than_whole(whole, Candidate("openvino", precision, "close", 30, ratio=ratio))
        assert says in said and bool(said) == bool(says)
    assert fastest_engine(whole, "close") is None  # it is not chosen in the ghost's place, as its answers are others


def test_exact_answers_of_a_ghost_are_computed_in_float32() -> None:
    """Low precision moves confidences across the threshold of an exit, which the logits do not show."""
    made = ghost(average=False)
    fast = deepres.optimize(made, X, engine="openvino", measure=True, seconds=0.1)
    assert (fast.choice.precision, fast.choice.answers) == ("float32", "exact")
    assert {one.answers for one in fast.candidates if one.precision == "bf16"} <= {"close"}
    whole = {one.precision: one for one in fast.candidates if one.engine == WHOLE}
    assert set(whole) == {one.precision for one in fast.candidates if one.engine == "openvino"}
    assert bool(fast.slower_than_whole) == (whole["float32"].ratio > fast.candidates[0].ratio)
    with pytest.raises(DeepresError, match="changes at which exit an input of a ghost leaves"):
        deepres.optimize(made, X, engine="openvino", precision="bf16", answers="exact")
    with pytest.raises(DeepresError, match="1 exit thresholds were given, and the network has 2 early exits"):
        fast.leave_from([0.5])


def test_a_kept_choice_is_of_these_exits(tmp_path: Path) -> None:
    made = ghost(average=False)
    fast = deepres.optimize(made, X, engine="openvino", precision="float32").save(tmp_path / "fast")
    made.settings = Settings(exit_threshold=0.6)
    built = build_choice(made, X, fast)
    torch.testing.assert_close(built(X), made(X, trace=True), rtol=1e-4, atol=1e-5)  # at its new threshold
    assert made.trace is not None and torch.equal(built.exited_at, made.trace.exited_at)
    made.settings = Settings(exit_threshold=0.6, exits=(0,))
    with pytest.raises(DeepresError, match="a ghost with other exits"):
        build_choice(made, X, fast)
    (fast / "segment-1.xml").unlink()
    made.settings = Settings(exit_threshold=0.6)
    with pytest.raises(DeepresError, match="holds no readable segments"):
        build_choice(made, X, fast)


def test_other_thresholds_that_the_same_segments_compute() -> None:
    made = ghost(average=False)
    inf = float("inf")
    for settings, wanted in (
        (Settings(exit_threshold=0.3), (0.3, 0.3)),
        (Settings(exit_threshold=0.3, exits=(1,)), (inf, 0.3)),
        (Settings(), None),
        (Settings(exit_threshold=0.3, average=True), None),
        (Settings(exit_threshold=0.3, skip_threshold=0.0, fixed=True), None),
    ):
        assert exit_thresholds(made, settings) == wanted
    made.settings = Settings(exit_threshold=0.5, exits=(0,))
    assert exit_thresholds(made, Settings(exit_threshold=0.3)) is None


def test_engines_without_exits_take_a_ghost_that_skips_the_same_blocks_for_all() -> None:
    made = ghost(average=False, gates=True)
    with pytest.raises(DeepresError, match="early exits, which run on openvino and openvino-streams alone: not on torch-eager"):
        deepres.optimize(made, X, engine="torch-eager")
    made.settings = dataclasses.replace(made.settings, exit_threshold=None)
    fast = deepres.optimize(made, X, engine="torch-eager", precision="float32")
    torch.testing.assert_close(fast(X), made(X), rtol=1e-4, atol=1e-5)
