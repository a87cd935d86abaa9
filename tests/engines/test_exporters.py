"""Converted networks answer as the originals do, for any batch; what cannot be converted names its module."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.engines import exporters
from deepres.models import open_exported

METADATA = {"deepres": "0", "format": "", "labels": '["one", "two", "three"]'}
WRITERS: dict[str, tuple[str, Callable[..., None]]] = {
    "onnx": ("net.onnx", exporters.to_onnx),
    "openvino": ("net.xml", exporters.to_openvino),
    "torch-export": ("net.pt2", exporters.to_torch_export),
}
X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def around(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*layers), *last).eval()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *x.shape[1:])


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for kind, (name, write) in WRITERS.items():
        write(around(nn.ReLU()), X[:1], folder / name, {**METADATA, "format": kind})
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", list(WRITERS))
def test_any_batch_gives_the_originals_answers(kind: str, files: Path) -> None:
    model = open_exported(files / WRITERS[kind][0], trust=True)
    for rows in (1, 2, 5):
        torch.testing.assert_close(model(X[:rows]), around(nn.ReLU())(X[:rows]), rtol=1e-5, atol=1e-5)
    assert model.header["format"] == kind and model.notes["classes"] == ["one", "two", "three"]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_changed_byte_is_noticed(kind: str, files: Path, tmp_path: Path) -> None:
    for file in files.iterdir():
        if file.stem == "net":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / WRITERS[kind][0]
    bias = around(nn.ReLU())[0].bias.detach().numpy().tobytes()
    holds = path.with_suffix(".bin") if kind == "openvino" else path
    data = holds.read_bytes()
    assert data.count(bias) == 1
    holds.write_bytes(data.replace(bias, bytes(len(bias))))
    with pytest.raises(DeepresError, match="was changed after it was exported"):
        open_exported(path, trust=True)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_truncated_file_is_one_sentence(kind: str, files: Path, tmp_path: Path) -> None:
    path = tmp_path / WRITERS[kind][0]
    path.write_bytes((files / path.name).read_bytes()[:700])
    with pytest.raises(DeepresError, match=r"damaged|changed"):
        open_exported(path, trust=True)


def test_labels_of_another_number_than_the_outputs_are_one_sentence(tmp_path: Path) -> None:
    exporters.to_onnx(around(nn.ReLU()), X[:1], tmp_path / "net.onnx", {**METADATA, "labels": '["one", "two"]'})
    with pytest.raises(DeepresError, match="its list of labels has 2 names, and its graph 3 outputs"):
        open_exported(tmp_path / "net.onnx")


def test_archives_are_opened_only_on_demand(files: Path) -> None:
    with pytest.raises(DeepresError, match="can run code when it is loaded"):
        open_exported(files / "net.pt2")


@torch.no_grad()
def test_aoti_compiles_for_any_batch(tmp_path: Path) -> None:
    exporters.to_aoti(around(nn.ReLU()), X[:1], tmp_path / "net.pt2", {**METADATA, "format": "aoti"})
    model = open_exported(tmp_path / "net.pt2", trust=True)
    for rows in (1, 5):
        torch.testing.assert_close(model(X[:rows]), around(nn.ReLU())(X[:rows]), rtol=1e-4, atol=1e-4)


def test_capturing_keeps_the_mode_of_every_module() -> None:
    for model in (around(nn.Dropout()), around(Branching())):
        model.train()[1].eval()
        before = [module.training for module in model.modules()]
        with contextlib.suppress(DeepresError):
            exporters.capture(model, X)
        assert [module.training for module in model.modules()] == before


def test_what_cannot_be_converted_names_its_module(tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match=r"^1\.0 \(Branching\): cannot be captured"):
        exporters.capture(around(Branching()), X)
    with pytest.raises(DeepresError, match=r"any batch size \(its code reads the batch size as a number"):
        exporters.capture(around(Counting()), X)
    program = exporters.capture(around(nn.ReLU(), Bessel()), X)
    for kind in ("onnx", "openvino"):
        with pytest.raises(DeepresError, match=r"^1\.1 \(Bessel\), operation aten\.special_bessel_j0"):
            WRITERS[kind][1](program, X, tmp_path / WRITERS[kind][0], METADATA)
    assert not [*tmp_path.iterdir()]


def test_a_missing_engine_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeepresError, match=r"openvino is not installed; run: pip install 'deepres\[export\]'"):
        exporters.openvino_model(deepres.create("resnet8-cifar"), X)
    with pytest.raises(DeepresError, match=r"onnxruntime is not installed; run: pip install"):
        open_exported(files / "net.onnx")
