"""Evaluation against slow and obvious versions; prediction on files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deepres
from deepres import DeepresError
from deepres.adapters import find_blocks
from deepres.cli.main import main
from deepres.data import Prepare, Shard, open_data
from deepres.evaluation import block_times, measure


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return 100 * total


def test_measures_are_those_of_a_slow_version() -> None:
    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1).train()
    result = measure(model, data.test, data.prepare, data.classes, batch=100)
    assert model.training  # as it was
    model.eval()
    with torch.no_grad():
        logits = model(data.prepare.normalise(data.test.pixels))
    labels = data.test.labels
    order = logits.argsort(1, descending=True)
    assert result.n == 359
    assert result.top1 == pytest.approx(100 * (order[:, 0] != labels).float().mean().item())
    assert result.top5 == pytest.approx(100 * (order[:, :5] != labels[:, None]).all(1).float().mean().item())
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.calibration == pytest.approx(calibration(logits.softmax(1).numpy(), labels.numpy()), rel=1e-3)
    for i, row in enumerate(result.confusion):
        assert sum(row) == int((labels == i).sum())
        assert result.per_class[str(i)] == pytest.approx(100 * (1 - row[i] / sum(row)))


def test_a_network_of_other_classes_is_refused(small_folder: Path, tmp_path: Path) -> None:
    model = deepres.create("resnet8-cifar", in_channels=1, num_classes=10)
    with pytest.raises(DeepresError, match="3 classes and the network 10"):
        deepres.evaluate(model, small_folder)
    prepare = Prepare(8, 1, (0.5,), (0.5,)).to_notes()
    path = deepres.save(model, tmp_path / "net.safetensors", classes=list("abcdefghij"), prepare=prepare)
    with pytest.raises(DeepresError, match="not the 10 that the network was trained on"):
        deepres.evaluate(path, small_folder)


def test_per_pixel_means_survive_the_file(tmp_path: Path) -> None:
    data = open_data("digits")
    mean = tuple(tuple(map(tuple, plane)) for plane in (data.train.pixels.float().mean(0) / 255).tolist())
    prepare = Prepare(8, 1, mean, (1.0,))
    again = Prepare.from_notes(json.loads(json.dumps(prepare.to_notes())))
    assert again == prepare
    images = data.train.pixels.float().div(255)
    torch.testing.assert_close(again.normalise(data.train.pixels), images - images.mean(0))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    model = deepres.create("resnet8-cifar", in_channels=1, num_classes=3)
    prepare = Prepare(16, 1, (0.2,), (0.3,)).to_notes()
    return deepres.save(model, tmp_path / "net.safetensors", classes=["a", "b", "c"], prepare=prepare)


@torch.no_grad()
def test_predictions_are_the_models_own(trained: Path, small_folder: Path) -> None:
    files = sorted((small_folder / "digit-0").iterdir())[:5]
    answers = list(deepres.predict(trained, files, batch=2))
    model = deepres.load(trained)
    for file, answer in zip(files, answers, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("L"), copy=True))[None, None].float() / 255
        probabilities = model((pixels - 0.2) / 0.3).softmax(1)[0]
        assert answer.names[0] == "abc"[int(probabilities.argmax())] and len(answer.names) == 3
        assert answer.probabilities[0] == pytest.approx(float(probabilities.max()), rel=1e-4)
        assert answer.file == str(file)


def test_unreadable_files_are_answered_not_raised(trained: Path, small_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    good = small_folder / "digit-0" / "000.png"
    answers = list(deepres.predict(trained, [bad, good, tmp_path / "missing.jpg"]))
    assert [bool(answer.error) for answer in answers] == [True, False, True]
    assert "bad.png: not an image" in answers[0].error and "missing.jpg" in answers[2].error
    assert len(list(deepres.predict(trained, [small_folder]))) == 72
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeepresError, match="no images found"):
        deepres.predict(trained, [tmp_path / "empty"])


def test_networks_that_diverged_are_measured() -> None:
    """Their logits are not numbers, and neither are the loss and the calibration."""
    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1)
    with torch.no_grad():
        model.head.fc.weight.fill_(float("nan"))
    result = measure(model, data.val, data.prepare, data.classes)
    assert result.n == len(data.val) and np.isnan(result.loss) and np.isnan(result.calibration) and result.top1 > 80


def test_classes_of_one_name_are_counted_apart() -> None:
    """ImageNet has two that are called "crane"."""
    data = open_data("digits")
    result = measure(deepres.create("resnet8-cifar", in_channels=1), data.val, data.prepare, ("crane", "crane", *"23456789"))
    assert list(result.per_class)[:3] == ["crane (0)", "crane (1)", "2"] and len(result.per_class) == 10
    assert set(result.per_class) == set(result.classes)


def test_every_module_keeps_its_mode(small_folder: Path) -> None:
    """Frozen norms stay in eval mode in a network that trains, and their statistics as they are."""
    data, model = open_data(small_folder, size=16), deepres.create("resnet8-cifar", in_channels=1, num_classes=3).train()
    model.stem.eval()
    before, buffers = [one.training for one in model.modules()], [one.clone() for one in model.buffers()]
    for protocol in ("one-crop", "ten-crop"):
        deepres.evaluate(model, data, protocol=protocol)
    predictions = deepres.predict(model, small_folder / "digit-0", prepare=data.prepare)
    next(predictions)
    block_times(model, find_blocks(model), torch.zeros(2, 1, 16, 16), repeats=1)
    assert [one.training for one in model.modules()] == before
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), buffers, strict=True))


def test_hidden_files_are_no_images_and_one_path_is_enough(trained: Path, small_folder: Path, tmp_path: Path) -> None:
    """Archives of macOS hold a ``._name`` for each file."""
    image = (small_folder / "digit-0" / "000.png").read_bytes()
    for name in ("b.png", "._b.png", "a/c.png", ".cache/d.png", "__MACOSX/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image)
    for given in (tmp_path, str(tmp_path), [tmp_path]):
        assert [answer.file for answer in deepres.predict(trained, given)] == [
            str(tmp_path / "a/c.png"),
            str(tmp_path / "b.png"),
        ]


def test_numbers_out_of_range_are_one_sentence(trained: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--batch", "0"), ("--batch", "-1"), ("--top", "0")):
        assert main(["predict", str(trained), str(small_folder), option, value]) == 2
        assert "top and batch are at least 1" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--data", str(small_folder), "--batch", "0"]) == 2
    assert "batch is at least 1, not 0" in capsys.readouterr().err
    with pytest.raises(DeepresError, match="there is no split 'valid'; there are train, val, test"):
        deepres.evaluate(trained, small_folder, split="valid")  # type: ignore[arg-type]


def test_unreadable_images_of_all_processes_are_counted(
    large_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which the other finds what this one finds."""
    root = tmp_path / "damaged"
    shutil.copytree(large_folder, root)
    for path in (root / "val" / "digit-0").glob("*.png"):
        path.write_bytes(b"\x89PNG nothing")
    data = open_data(root)
    model = deepres.create("resnet8-cifar", num_classes=2, in_channels=1)
    found = []
    for times in (1, 2):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, by=times: tensor.mul_(by))
        found.append(measure(model, data.test, data.prepare, data.classes, share=Shard(0, 2), workers=0))
    assert found[0].n == 12 and found[1].n == 24
    assert found[1].unreadable == 2 * found[0].unreadable > 0
