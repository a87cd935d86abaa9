"""Batches in parts, one thread each, are answered as whole ones are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ghost_helpers import X, ghost
from torch import Tensor, nn

import deepres
from deepres.data import open_data
from deepres.engines import ENGINES, build_choice, choosing, openvino_streams
from deepres.engines.compare import Trial
from deepres.engines.int8 import ErrorRises
from deepres.engines.openvino_streams import StreamsRunner
from deepres.engines.source import Source

STREAMS = ENGINES["openvino-streams"]
BATCH = 12


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return deepres.create("resnet8-cifar", in_channels=1).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(41, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_any_number_of_inputs_in_parts_is_answered_in_order(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More parts than requests, a rest that fills no part, and too few inputs for two parts."""
    monkeypatch.setattr(StreamsRunner, "_measured_part", lambda self, batch: 3)
    runner = STREAMS.build(Source(model, images[:BATCH]), images[:BATCH], "float32")
    assert isinstance(runner, StreamsRunner) and runner.part == 3
    for count in (1, 5, 6, 8, BATCH, 41):
        torch.testing.assert_close(runner(images[:count]), model(images[:count]), atol=1e-4, rtol=1e-4)
    first, again = runner(images), runner(images.flip(0))  # an answer is not overwritten by the next call
    torch.testing.assert_close(first, again.flip(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(runner(images.double().requires_grad_()), first)


def test_an_interrupted_batch_leaves_no_request_at_work(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamsRunner, "_measured_part", lambda self, batch: 1)
    runner = STREAMS.build(Source(model, images[:BATCH]), images[:BATCH], "float32")
    wanted = runner(images)
    calls = iter([None, KeyboardInterrupt])

    def interrupted(request: object) -> list[Tensor]:
        if (error := next(calls)) is not None:
            raise error
        return answer(request)

    answer = openvino_streams._answer
    with monkeypatch.context() as patch:
        patch.setattr(openvino_streams, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner(images)
    assert torch.equal(runner(images), wanted)


def test_parts_are_as_many_for_each_thread(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(model, images[:BATCH])
    for worth, part in ((1e3, BATCH // 2), (1e-9, 1)):  # one part for each thread; as many as are allowed
        monkeypatch.setattr("deepres.engines.openvino_streams.WORTH", worth)
        runner = STREAMS.build(source, images[:BATCH], "float32")
        assert isinstance(runner, StreamsRunner) and runner.part == part


def test_saved_parts_keep_their_size(model: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = deepres.optimize(model, images[:BATCH], engine="openvino-streams", precision="float32")
    assert isinstance(fast.runner, StreamsRunner)
    fast.save(tmp_path)
    monkeypatch.setattr(StreamsRunner, "_measured_part", lambda self, batch: pytest.fail("measured again"))
    loaded = deepres.optimize(model, images[:BATCH], choice=tmp_path)
    assert isinstance(loaded.runner, StreamsRunner) and loaded.runner.part == fast.runner.part
    assert torch.equal(loaded(images), fast(images))


@pytest.mark.parametrize(("threads", "batch", "tried"), [(2, BATCH, True), (2, 1, False), (1, BATCH, False)])
def test_it_is_tried_where_there_are_threads_and_inputs_for_them(
    model: nn.Module, images: Tensor, threads: int, batch: int, tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    trials: list[Trial] = []

    def capture(source: Source, planned: list[Trial], *_: object, **__: object) -> None:
        trials.extend(planned)

    monkeypatch.setattr(choosing, "_chosen", capture)
    deepres.optimize(model, images[:batch])
    assert ("openvino-streams" in {one.engine.name for one in trials}) == tried
    monkeypatch.undo()
    asked = deepres.optimize(model, images[:batch], engine="openvino-streams", precision="float32")
    assert asked(images[:0]).shape == (0, 10)
    with torch.no_grad():
        torch.testing.assert_close(asked(images), model(images), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_ghost_s_segments_run_in_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamsRunner, "_measured_part", lambda self, batch: 2)
    made = ghost(average=True)
    fast = deepres.optimize(made, X, engine="openvino-streams", precision="float32")
    for built in (fast, build_choice(made, X, fast.save(tmp_path / "fast"))):
        for rows in (1, 5, len(X)):
            torch.testing.assert_close(built(X[:rows]), made(X[:rows], trace=True), rtol=1e-4, atol=1e-5)
            assert made.trace is not None and torch.equal(built.exited_at, made.trace.exited_at)
    assert len(set(built.exited_at.tolist())) >= 3


def test_int8_is_calibrated_once_for_both_ways(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("digits", size=16)
    source = Source(model, torch.zeros(BATCH, 1, 16, 16))
    said: list[str] = []
    whole, parts = (
        ENGINES[name].quantize(source, data, error=100.0, log=said.append) for name in ("openvino", "openvino-streams")
    )
    assert said.count("calibrating int8") == 1
    assert isinstance(parts.runner, StreamsRunner) and (whole.before, whole.after) == (parts.before, parts.after)
    inputs = torch.randn(BATCH, 1, 16, 16)
    torch.testing.assert_close(whole.runner(inputs), parts.runner(inputs), atol=0.1, rtol=0.1)
    monkeypatch.setattr("deepres.engines.int8.error_of", lambda *_: 100.0)
    for name in ("openvino", "openvino-streams"):
        with pytest.raises(ErrorRises):
            ENGINES[name].quantize(source, data, error=0.0, log=said.append)
    assert said.count("calibrating int8") == 2
