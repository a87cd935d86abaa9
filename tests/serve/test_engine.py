"""The server on an engine: the answers are the network's, and the stages of a request are told."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import png, start
from sklearn.datasets import load_sample_images

import deepres
from deepres import DeepresError
from deepres.data import Prepare
from deepres.models import save
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
