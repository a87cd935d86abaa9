"""Detectors as ONNX files: the boxes of the original on images of any size, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from deepres import DeepresError
from deepres.cli.main import main
from deepres.detection import detector, is_detector, save_detector
from deepres.detection.graph import DetectorGraph
from deepres.engines import ExportedDetector, export_detector
from deepres.engines.detector_export import paired


def small(form: str = "fpn", **options) -> nn.Module:
    torch.manual_seed(0)
    usual = {"size": 64, "longest": 96, "proposals": (50, 30), "frozen": False, "net_options": {"width": 0.25}}
    usual |= {"channels": 16, "width": 32} if form == "fpn" else {}
    model = detector("resnet18", ("blue", "red"), form, **{**usual, **options}).eval()
    for module in model.modules():  # trained networks have other statistics than a fresh one
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("form", ["fpn", "c4"])
@pytest.mark.parametrize("options", [{"antialias": True}, {"context": True}])
def test_the_graph_gives_the_detector_s_boxes(form: str, options: dict) -> None:
    model = small(form, canvas=(96, 96), **options)
    graph = DetectorGraph(model, (96, 96))
    for size in ((48, 64), (200, 130), (97, 300), (20, 20)):
        image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            (expected,) = model([image.permute(2, 0, 1).float() / 255])
            boxes, labels, scores = graph(image)
        assert len(boxes) == len(expected["boxes"]) > 5
        torch.testing.assert_close(boxes, expected["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores, expected["scores"], rtol=1e-4, atol=1e-4)
        assert torch.equal(labels, expected["labels"] - 1)


def test_the_file_holds_the_detector_and_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = small(canvas=(96, 96)), tmp_path / "d.onnx"
    weights = save_detector(model, tmp_path / "d.safetensors")
    assert is_detector(weights) and not is_detector(tmp_path / "nothing") and not is_detector(tmp_path)
    assert main(["export", str(weights), "--to", "onnx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0 without a counterpart, 0 with another label" in said
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    header = session.get_modelmeta().custom_metadata_map
    assert json.loads(header["labels"]) == ["blue", "red"] and json.loads(header["size"]) == {"short": 64, "longest": 96}
    image = np.random.default_rng(0).integers(0, 256, (70, 150, 3), dtype=np.uint8)
    boxes, labels, scores = session.run(None, {"image": image})
    with torch.no_grad():
        (expected,) = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    assert np.allclose(boxes, expected["boxes"], atol=1e-2) and np.allclose(scores, expected["scores"], atol=1e-4)
    assert (labels == expected["labels"].numpy() - 1).all()
    Image.fromarray(image).save(tmp_path / "a.png")
    listed = []
    for reference in (weights, out):
        assert main(["detect", "predict", str(reference), str(tmp_path / "a.png"), "--threshold", "0.3"]) == 0
        listed.append(capsys.readouterr().out)
    assert listed[0] == listed[1] and "blue" in listed[0]
    assert main(["detect", "predict", str(out), str(tmp_path / "a.png"), "--flip"]) == 2
    assert "sees an image once" in capsys.readouterr().err
    for args, says in (
        (["detect", "evaluate", str(weights), str(out), "--data", "x"], "d.onnx: an exported detector answers alone"),
        (["detect", "look", str(out), "--data", "x"], "d.onnx: is an exported detector, in which no blocks are left"),
        (
            ["detect", "shrink", str(out), "--data", "x", "--out", "y"],
            "d.onnx: is an exported detector, in which no blocks are left",
        ),
        (["export", str(weights), "--size", "32", "--out", "y.onnx"], "leave out --weights and --size"),
    ):
        assert main(args) == 2
        assert says in capsys.readouterr().err, args
    assert main(["predict", str(out), str(tmp_path / "a.png")]) == 2
    assert "holds a detector, which `deepres detect predict`" in capsys.readouterr().err
    out.write_bytes(out.read_bytes().replace(b'["blue", "red"]', b'["blue", "rot"]'))
    with pytest.raises(DeepresError, match="was changed after it was exported"):
        ExportedDetector(out)


def test_other_formats_and_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = save_detector(small(), tmp_path / "d.safetensors")
    for target in ("openvino", "torch-export", "aoti"):
        assert main(["export", str(weights), "--to", target, "--out", str(tmp_path / "d.x")]) == 2
        assert "a detector is exported to ONNX only" in capsys.readouterr().err
    with pytest.raises(DeepresError, match=r"ends in \.onnx"):
        export_detector(weights, out=tmp_path / "d.xml")
    with pytest.raises(DeepresError, match=r"opset 9: torch\.onnx writes 18 to 23"):
        export_detector(weights, out=tmp_path / "d.onnx", opset=9)
    assert [one.name for one in tmp_path.iterdir()] == ["d.safetensors"]


def test_pairs_are_boxes_of_one_place() -> None:
    one = {
        "boxes": torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 100], [300, 300, 340, 340]]),
        "labels": torch.tensor([1, 2, 1]),
        "scores": torch.tensor([0.9, 0.88, 0.5]),
    }
    two = {key: value.flip(0) for key, value in one.items()}
    first, second, changed = paired(one, two)
    assert (first.tolist(), second.tolist(), changed) == ([0, 1, 2], [2, 1, 0], 0)
    other = {**two, "labels": torch.tensor([2, 2, 1])}
    assert paired(one, other)[2] == 1
    missing = {key: value[:2] for key, value in one.items()}
    assert len(paired(one, missing)[0]) == 2 and len(paired(one, {key: value[:0] for key, value in one.items()})[0]) == 0
