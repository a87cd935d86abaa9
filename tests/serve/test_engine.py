"""The server on an engine: the answers are the network's, and the stages of a request are told."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import png, start
from sklearn.datasets import load_sample_images
from torch import nn

import deepres
from deepres import DeepresError
from deepres.data import Prepare, open_data
from deepres.engines import optimize
from deepres.engines.inputs import validation_images
from deepres.models import save
from deepres.serve import loading
from deepres.serve.metrics import STAGES
from deepres.serve.spec import Spec
from deepres.serve.worker import Worker, WorkerAnswers


def test_a_network_is_served_on_the_fastest_engine(tmp_path: Path) -> None:
    model = deepres.create("resnet8-cifar", width=0.5).eval()
    prepare = Prepare.usual(16)
    path = save(model, tmp_path / "net.safetensors", prepare=prepare.to_notes(), classes=list("abcdefghij"))
    server = start(path, "--engine", "openvino")
    try:
        assert json.loads(server.ask("/health")[1])["engine"].startswith("openvino")
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        status, text = server.ask("/predict?top=10", png(Image.fromarray(pixels)))
        found = {one["name"]: one["probability"] for one in json.loads(text)["classes"]}
        with torch.no_grad():
            expected = model(prepare.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])).softmax(1)[0]
        assert status == 200 and [found[name] for name in "abcdefghij"] == pytest.approx(expected.tolist(), abs=0.01)
        for stage in STAGES:
            assert server.metric(f'deepres_stage_seconds_count{{stage="{stage}"}}') == 1
    finally:
        server.process.kill()
        server.process.communicate()


def test_photographs_are_answered_as_predict_answers_them(tmp_path: Path) -> None:
    prepare = Prepare.usual(112)  # of 128, so that images are resized and cropped
    path = save(deepres.create("resnet8-cifar", width=0.5).eval(), tmp_path / "net.safetensors", prepare=prepare.to_notes())
    photograph = Image.fromarray(load_sample_images().images[0])
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera that was held upright
    kinds: dict[str, dict[str, object]] = {"a.jpg": {}, "b.jpg": {"exif": turned}, "c.png": {}, "d.webp": {}, "e.gif": {}}
    for name, more in kinds.items():
        photograph.save(tmp_path / name, **more)
    photograph.resize((112, 112)).save(tmp_path / "f.jpg")
    files = [tmp_path / name for name in (*kinds, "f.jpg")]
    expected = [dict(zip(one.names, one.probabilities, strict=True)) for one in deepres.predict(path, files, top=10)]
    server = start(path, "--engine", "none", "--wait", "50")
    try:
        for clients in (1, len(files)):  # one by one, and in a batch
            with ThreadPoolExecutor(clients) as pool:
                replies = list(pool.map(lambda file: server.ask("/predict?top=10", file.read_bytes()), files))
            for (status, text), wanted in zip(replies, expected, strict=True):
                found = {one["name"]: one["probability"] for one in json.loads(text)["classes"]}
                assert status == 200 and found == pytest.approx(wanted, abs=1e-6)
    finally:
        server.process.kill()
        server.process.communicate()
    assert expected[0] != expected[1]  # the camera's note was read


def test_engines_are_compared_on_the_images_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("digits")
    net = deepres.create("resnet8-cifar", width=0.5, in_channels=1).eval()
    path = save(net, tmp_path / "net.safetensors", prepare=data.prepare.to_notes(), classes=list(data.classes))
    compared: list[torch.Tensor] = []

    def watched(model: nn.Module, example: torch.Tensor, **asked: Any) -> Any:
        compared.extend((example, asked["images"]))
        return optimize(model, example, **asked)

    monkeypatch.setattr(loading, "optimize", watched)
    loading.load_answering(Spec(str(path), engine="torch-eager", data="digits"))
    example, images = compared
    expected = validation_images(data, at_least=8)
    assert torch.equal(images, expected) and torch.equal(example, expected[:8])


def test_options_without_a_use_are_refused(tmp_path: Path) -> None:
    path = save(
        deepres.create("resnet8-cifar", width=0.5).eval(), tmp_path / "net.safetensors", prepare=Prepare.usual(16).to_notes()
    )
    for options, says in (
        (
            {"engine": "none", "data": "digits"},
            "--data: engines are compared on its images, and --engine none leaves no choice",
        ),
        ({"tighten": True}, "--tighten: makes a ghost faster, and .*net.safetensors is none"),
        ({"data": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(DeepresError, match=says):
            loading.load_answering(Spec(str(path), **options))


def test_an_engine_that_is_not_known_ends_the_server_with_a_sentence(tmp_path: Path) -> None:
    path = save(deepres.create("resnet8-cifar", width=0.5), tmp_path / "net.safetensors")
    with pytest.raises(DeepresError, match="there is no engine 'openvin'; did you mean 'openvino'"):
        Worker(Spec(str(path), engine="openvin"))


def test_an_exported_file_is_served_by_the_engine_that_it_is_for(tmp_path: Path) -> None:
    model = deepres.create("resnet8-cifar", width=0.5).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    deepres.export(model, "onnx", tmp_path / "net.onnx", size=16)
    worker = Worker(Spec(str(tmp_path / "net.onnx")))
    try:
        assert worker.facts.engine.startswith("ONNX Runtime")
        with torch.no_grad():
            expected = model(Prepare.usual(16).normalise(torch.from_numpy(images))).softmax(1)
        np.testing.assert_allclose(worker.call(images, 0).probabilities, expected.numpy(), atol=1e-4)
    finally:
        worker.stop()


def test_answers_cross_as_bytes() -> None:
    random = np.random.default_rng(0)
    sent = WorkerAnswers(random.random((3, 7), dtype=np.float32), random.random(3, dtype=np.float32), 0.25)
    found = WorkerAnswers.from_bytes(sent.to_bytes(), 3)
    assert np.array_equal(found.probabilities, sent.probabilities) and np.array_equal(found.depth, sent.depth)
    assert found.seconds == 0.25
    with pytest.raises(RuntimeError, match="no memory"):
        WorkerAnswers.from_bytes(b"!no memory", 3)
