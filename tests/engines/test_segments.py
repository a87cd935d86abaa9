"""A ghost with early exits as a folder of segments: the same answers and the same depth for each input as the ghost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ghost_helpers import CLASSES, X, ghost

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.models import SegmentedModel, annotate, open_exported, open_model
from deepres.serve.loading import load_answering
from deepres.serve.spec import Spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments") / "ghost"
    deepres.export(ghost(average=True), "onnx", out, size=16)
    return out


@torch.no_grad()
@pytest.mark.parametrize(
    ("to", "average", "gates"), [("onnx", False, True), ("openvino", True, False), ("torch-export", False, False)]
)
def test_segments_answer_as_the_ghost_does(to: str, average: bool, gates: bool, tmp_path: Path) -> None:
    made = ghost(average, gates)
    result = deepres.export(made, to, tmp_path / "out", size=16)
    assert result.changed == 0 and result.exits is not None and result.exits[1] == 0
    model = open_exported(tmp_path / "out", trust=True)
    assert isinstance(model, SegmentedModel)
    for rows in (1, 24):
        torch.testing.assert_close(model(X[:rows]), made(X[:rows], trace=True), rtol=1e-4, atol=1e-5)
        assert made.trace is not None and torch.equal(model.exited_at, made.trace.exited_at)
        torch.testing.assert_close(model.depth, made.trace.ran.float().mean(1))
    assert len(set(model.exited_at.tolist())) >= 3
    if gates:
        assert not made.trace.ran[:, made.segments[2].skippable[0]].any()


def test_a_folder_of_segments_is_used_by_name(folder: Path, small_folder: Path, tmp_path: Path) -> None:
    opened = open_model(folder)
    assert opened.classes == tuple(CLASSES) and opened.prepare is not None and opened.prepare.size == 16
    assert (
        main(["predict", str(folder), str(small_folder / "digit-1"), "--format", "csv", "--out", str(tmp_path / "p.csv")]) == 0
    )
    made = ghost(average=True)
    annotate(made, classes=CLASSES, prepare=opened.prepare.to_notes())
    assert deepres.evaluate(folder, str(small_folder)).top1 == deepres.evaluate(made, str(small_folder)).top1
    about = json.loads((folder / "runner.json").read_text())
    assert about["labels"] == CLASSES and about["threshold"] == 0.5 and about["preprocessing"]["size"] == 16
    assert [one["exit"] for one in about["segments"]] == [0, 1, None]
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert total < 4 * sum(tensor.numel() for tensor in made.state_dict().values()) + 200_000  # each weight once


def test_the_depth_of_each_image_is_served(folder: Path) -> None:
    answering, facts = load_answering(Spec(str(folder)))
    made = ghost(average=True)
    logits, depth = answering(X, 0)
    torch.testing.assert_close(logits, made(X, trace=True), rtol=1e-4, atol=1e-5)
    assert made.trace is not None and len(set(depth.tolist())) >= 3
    torch.testing.assert_close(depth, made.trace.ran.float().mean(1))
    assert facts.engine.startswith("ONNX Runtime")


def test_changed_folders_and_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    for name in ("runner.json", "segment-0.onnx", "segment-1.onnx", "segment-2.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text = (tmp_path / "runner.json").read_text()
    for changed, says in ((text.replace("0.5", "0.4"), "was changed after it was exported"), (text[:50], "is damaged")):
        (tmp_path / "runner.json").write_text(changed)
        with pytest.raises(DeepresError, match=says):
            open_model(tmp_path)
    (tmp_path / "runner.json").write_text(text)
    (tmp_path / "segment-0.onnx").write_bytes((folder / "segment-1.onnx").read_bytes())
    with pytest.raises(DeepresError, match="is not the segment that was exported with this folder"):
        open_model(tmp_path)
    (tmp_path / "segment-0.onnx").unlink()
    with pytest.raises(DeepresError, match=r"segment-0\.onnx: no such file"):
        open_model(tmp_path)
    with pytest.raises(DeepresError, match="ghost: is exported already"):
        deepres.export(folder, "torch-export", tmp_path / "again.pt2")
    made = ghost(average=False)
    with pytest.raises(DeepresError, match="becomes a folder of segments"):
        deepres.export(made, "onnx", tmp_path / "net.onnx", size=16)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DeepresError, match="is not an exported ghost"):
        deepres.export(made, "onnx", tmp_path / "mine", size=16)
    with pytest.raises(DeepresError, match="not aoti"):
        deepres.export(made, "aoti", tmp_path / "aoti", size=16)


def test_a_network_is_left_as_it_was_when_its_ghost_was_exported(tmp_path: Path) -> None:
    made = ghost(average=False)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    expected = made(X)
    deepres.export(made, "torch-export", tmp_path / "first", size=16)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert torch.equal(made(X), expected)
