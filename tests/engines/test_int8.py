"""int8: within the allowed loss, or refused with a sentence."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import deepres
from deepres import DeepresError
from deepres.data import Data, open_data
from deepres.engines import build_choice
from deepres.engines.engine import computes_bf16
from deepres.engines.inputs import some_inputs
from deepres.engines.int8 import check_rise, float_error, quantize_openvino
from deepres.engines.source import Source
from deepres.engines.torch_int8 import TorchInt8Runner, load_torch_int8, quantize_torch
from deepres.evaluation import measure


@pytest.fixture(scope="module")
def known() -> tuple[torch.nn.Module, Data]:
    """A network whose classifier holds the mean features of the classes, which takes no training, and digits."""
    torch.manual_seed(0)
    data = open_data("digits")
    model = deepres.create("resnet8-cifar", in_channels=1, width=0.5)
    images, labels = some_inputs(data.train, data.prepare, 512)
    features: list[torch.Tensor] = []
    head = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        for _ in range(20):
            model.train()(images)
        hook = head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        model.eval()(images)
        hook.remove()
        spread = (features[0] - features[0].mean(0)) / features[0].std(0)
        means = torch.stack([spread[labels == k].mean(0) for k in range(10)])
        head.weight.copy_(means / features[0].std(0))
        head.bias.copy_(-head.weight @ features[0].mean(0) - means.square().sum(1) / 2)
    return model, dataclasses.replace(data, train=data.train.take(torch.arange(96)))


@torch.no_grad()
def test_int8_is_calibrated_measured_and_kept(known: tuple[torch.nn.Module, Data], tmp_path: Path) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 64)[0]
    fast = deepres.optimize(
        model, images[:16], images=images, data=data, error=5.0, precision="int8", engine="openvino", seconds=0.1
    )
    int8 = next(one for one in fast.candidates if one.precision == "int8")
    assert fast.choice.precision == "int8" and int8.rise is not None and int8.rise <= 5.0
    assert torch.nn.functional.cosine_similarity(fast(images), model(images)).mean() > 0.9
    built = build_choice(model, images[:16], fast.save(tmp_path / "fast"))
    assert torch.equal(built(images[:16]), fast(images[:16]))
    remembered = deepres.optimize(model, images[:16], images=images, data=data, error=5.0, precision="int8", engine="openvino")
    assert torch.equal(remembered(images[:16]), fast(images[:16])) and remembered.candidates == fast.candidates
    with pytest.raises(DeepresError, match=r"int8 raises the error on 143 validation images from .* to .* %, and at most -101"):
        deepres.optimize(model, images[:16], data=data, error=-101.0, precision="int8", engine="openvino")


def test_what_int8_needs_is_said(known: tuple[torch.nn.Module, Data]) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 4)[0]
    few = dataclasses.replace(data, train=data.train.take(torch.arange(20)))
    with pytest.raises(DeepresError, match="its training split has 20 images, and calibrating int8 takes at least 32"):
        deepres.optimize(model, images, data=few, precision="int8", engine="openvino")
    several = ("openvino", "torch-eager")
    fast = deepres.optimize(model, images, data=few, engine=several, seconds=0.1)  # the others are still tried
    assert any("calibrating int8 takes" in one.problem for one in fast.candidates) and fast.choice.precision != "int8"
    with pytest.raises(DeepresError, match="give data"):
        deepres.optimize(model, images, precision="int8")
    with pytest.raises(DeepresError, match="name one of them, or auto"):
        deepres.optimize(model, images, data=data, precision="int8", engine="onnxruntime")


class OneBadLayer(torch.nn.Module):
    """A network whose second layer sees one feature a thousand times larger than those that tell the classes apart."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.mix = torch.nn.Linear(10, 11)
        self.out = torch.nn.Linear(11, 10)
        with torch.no_grad():
            self.mix.weight.copy_(torch.cat([torch.eye(10), torch.full((1, 10), 3000.0)]))
            self.out.weight.copy_(torch.cat([torch.eye(10), torch.zeros(10, 1)], 1))
            self.mix.bias.zero_()
            self.out.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.mix(self.inner(x)))


@torch.no_grad()
def test_the_layer_that_loses_most_stays_in_higher_precision(known: tuple[torch.nn.Module, Data]) -> None:
    model, data = known
    bad = OneBadLayer(model).eval()
    source = Source(bad, some_inputs(data.val, data.prepare, 16)[0])
    said: list[str] = []
    found = quantize_openvino(source, data, error=3.0, log=said.append)
    first = float(re.search(r"int8 raises the error by ([\d.]+) points", " ".join(said))[1])  # type: ignore[index]
    assert first > 10 and found.rise <= 3.0 and found.kept >= 1
    bf16 = computes_bf16(torch.device("cpu"))
    precisions = {info for info in found.runner.precisions() if info in ("bf16", "f32", "i8", "u8")}
    assert ("bf16" if bf16 else "f32") in precisions and precisions & {"i8", "u8"}


@torch.no_grad()
def test_of_pytorchs_int8_too_the_layer_that_loses_most_stays_in_higher_precision(
    known: tuple[torch.nn.Module, Data], tmp_path: Path
) -> None:
    model, data = known
    bad = OneBadLayer(model).eval()
    source = Source(bad, some_inputs(data.val, data.prepare, 16)[0])
    said: list[str] = []
    found = quantize_torch(source, data, error=3.0, log=said.append)
    first = float(re.search(r"int8 raises the error by ([\d.]+) points with 0 layers", " ".join(said))[1])  # type: ignore[index]
    assert first > 10 and found.rise <= 3.0 and found.kept == 1
    assert isinstance(found.runner, TorchInt8Runner) and found.runner.kept == ("out",)
    with pytest.raises(OSError, match=r"."):
        found.runner.save(tmp_path / "nowhere")
    found.runner.save(tmp_path)
    built = load_torch_int8(tmp_path, source)
    assert built.kept == ("out",) and torch.equal(built(source.example), found.runner(source.example))


@torch.no_grad()
def test_int8_of_pytorch_is_calibrated_measured_and_kept(known: tuple[torch.nn.Module, Data], tmp_path: Path) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 32)[0]
    asked = {"images": images, "data": data, "precision": "int8", "engine": "torch"}
    fast = deepres.optimize(model, images[:16], error=5.0, seconds=0.1, **asked)
    int8 = next(one for one in fast.candidates if one.precision == "int8")
    assert (fast.choice.engine, fast.choice.precision) == ("torch", "int8") and int8.rise is not None and int8.rise <= 5.0
    assert not torch.equal(fast(images), model(images))
    assert torch.nn.functional.cosine_similarity(fast(images), model(images)).mean() > 0.9
    built = build_choice(model, images[:16], fast.save(tmp_path / "fast"))
    assert torch.equal(built(images[:16]), fast(images[:16]))
    with pytest.raises(DeepresError, match=r"int8 raises the error on 143 validation images from .* to .* %, and at most -101"):
        check_rise(5.0, 5.0, -101.0, data)


@torch.no_grad()
def test_a_cache_that_cannot_be_written_or_is_incomplete(
    known: tuple[torch.nn.Module, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = known
    images = some_inputs(data.val, data.prepare, 16)[0]
    asked = {"images": images, "data": data, "error": 5.0, "precision": "int8", "engine": "openvino", "seconds": 0.1}
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path / "taken" / "cache"))
    fast = deepres.optimize(model, images, **asked)
    assert fast.choice.precision == "int8"
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(type(fast.runner), "save", _no_space)
    deepres.optimize(model, images, **asked)
    assert not [*(tmp_path / "cache").rglob("measured.json")]  # what cannot be loaded is not remembered
    monkeypatch.undo()
    monkeypatch.setenv("DEEPRES_CACHE", str(tmp_path / "cache"))
    deepres.optimize(model, images, **asked)
    for file in (tmp_path / "cache").rglob("*"):
        if file.suffix == ".bin":
            file.unlink()
    with pytest.raises(DeepresError, match=r"its engine cannot be loaded .* --again"):
        deepres.optimize(model, images, **asked)
    assert deepres.optimize(model, images, again=True, **asked).choice.precision == "int8"


def _no_space(runner: object, folder: Path) -> None:
    raise OSError(28, "No space left on device")


class Bessel(torch.nn.Module):
    """A network with an operation that OpenVINO lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.fc(x.flatten(1)))


def test_the_error_in_float32_is_known_of_networks_that_openvino_cannot_take(known: tuple[torch.nn.Module, Data]) -> None:
    model, data = Bessel(), known[1]
    source = Source(model, some_inputs(data.val, data.prepare, 16)[0])
    assert float_error(source, data) == pytest.approx(measure(model, data.val, data.prepare, data.classes).top1)
