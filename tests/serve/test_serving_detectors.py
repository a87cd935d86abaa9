"""A detector behind HTTP: the boxes of `detect predict`, alone and in a batch, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Server, png, start, wait_until

from deepres.cli.main import main
from deepres.detection import detector, load_detector, save_detector

SIZES = ((64, 48), (48, 64), (130, 200), (97, 301))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = detector(
        "resnet18",
        ("blue", "red"),
        net_options={"width": 0.25},
        channels=16,
        width=32,
        size=64,
        longest=96,
        proposals=(50, 30),
        antialias=True,
    )
    return save_detector(model, tmp_path_factory.mktemp("detector") / "d.safetensors")


@pytest.fixture(scope="module")
def detecting(weights: Path) -> Iterator[Server]:
    one = start(weights, "--pixels", "1", "--body", "0.5", "--wait", "50")
    yield one
    one.process.kill()
    one.process.communicate()


def expected(weights: Path, image: np.ndarray) -> dict[str, list]:
    with torch.inference_mode():
        found = load_detector(weights)([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    return {key: value.tolist() for key, value in found.items()}


def check(answer: dict, image: np.ndarray, weights: Path) -> None:
    wanted, objects = expected(weights, image), answer["objects"]
    assert len(objects) == len(wanted["boxes"]) > 5
    assert [one["confidence"] for one in objects] == pytest.approx(wanted["scores"], abs=1e-4)
    assert [one["name"] for one in objects] == [("blue", "red")[label - 1] for label in wanted["labels"]]
    assert np.allclose([one["box"] for one in objects], wanted["boxes"], atol=0.01)


def test_boxes_are_those_of_the_detector_alone_and_in_a_batch(detecting: Server, weights: Path) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)]
    status, body = detecting.ask("/predict", png(images[0]))
    assert status == 200
    check(json.loads(body), images[0], weights)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: detecting.ask("/predict", png(image)), images * 2))
    for (status, body), image in zip(answers, images * 2, strict=True):
        assert status == 200
        check(json.loads(body), image, weights)
    scores = [one["confidence"] for one in json.loads(answers[0][1])["objects"]]
    gap = int(
        np.argmax(-np.diff(scores))
    )  # answers alone and in a batch differ by rounding, so the threshold is far from any score
    status, body = detecting.ask(f"/predict?threshold={(scores[gap] + scores[gap + 1]) / 2}", png(images[0]))
    assert [one["confidence"] for one in json.loads(body)["objects"]] == pytest.approx(scores[: gap + 1], abs=1e-4)
    assert detecting.metric('deepres_requests_total{status="200"}') >= 10


def test_what_a_detector_refuses(detecting: Server) -> None:
    image = png(np.zeros((64, 64), np.uint8))  # of one channel: decoded as RGB
    assert detecting.ask("/predict", image)[0] == 200
    for path, body, status, says in (
        ("/predict", b"no image", 415, "not an image"),
        ("/predict", bytes(600_000), 413, "at most 500,000 bytes"),
        ("/predict", png(Image.new("1", (2000, 1000))), 413, "2,000 x 1,000 pixels"),
        ("/predict?threshold=2", image, 422, "less than or equal to 1"),
    ):
        found, text = detecting.ask(path, body)
        assert found == status and says in text, (path, found, text)
    assert "Detections" in detecting.ask("/openapi.json")[1]


def test_a_killed_detector_is_started_again(detecting: Server) -> None:
    os.kill(detecting.worker().pid, signal.SIGKILL)
    wait_until(lambda: detecting.metric("deepres_worker_restarts_total") >= 1)
    wait_until(lambda: detecting.ask("/health")[0] == 200)
    assert detecting.ask("/predict", png(np.zeros((64, 64, 3), np.uint8)))[0] == 200


def test_options_of_classifiers_are_refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (("--engine", "openvino"), "a detector is served by PyTorch; leave --engine out"),
        (("--data", "digits"), "a detector is served by PyTorch; leave --data out"),
        (("--tighten",), "this is a detector; leave --tighten out"),
    ):
        assert main(["serve", str(weights), "--port", "0", *options]) == 2
        assert says in capsys.readouterr().err
