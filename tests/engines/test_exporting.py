"""``export``: networks of every kind, checked in the engine that they go to, used again by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.engines import exporting
from deepres.models import open_exported


def small_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    return transformers.ViTForImageClassification(config)


def shrunk() -> nn.Module:
    model = deepres.create("resnet20-cifar")
    from deepres.adapters import delete_blocks, find_blocks

    delete_blocks(model, [find_blocks(model)[1].path])
    return model


NETWORKS = {
    "ours": lambda: deepres.create("resnet8-cifar"),
    "shrunk": shrunk,
    "our transformer": lambda: deepres.create("vit-tiny-cifar", depth=1),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=5),
    "timm": lambda: timm.create_model("test_resnet", num_classes=6),
    "hugging face": small_vit,
}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_networks_of_every_kind_become_torch_export_archives(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NETWORKS[kind]().train()
    result = deepres.export(model, "torch-export", tmp_path / "net.pt2", size=32)
    assert model.training and all(module.training for module in model.modules())  # the caller's network stays as it is
    assert result.changed == 0 and result.difference <= 1e-4 * result.largest and result.examples == 32


@pytest.mark.parametrize("kind", ["hugging face"])
def test_onnx_and_openvino(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NETWORKS[kind]().eval()
    (tmp_path / "net.onnx.data").write_bytes(b"weights of a larger network that was net.onnx")
    for to, name in (("onnx", "net.onnx"), ("openvino", "net.xml")):
        result = deepres.export(model, to, tmp_path / name, size=32)
        assert result.changed == 0 and result.difference <= 1e-4 * result.largest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.bin", "net.onnx", "net.xml"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "digits"
    deepres.train(deepres.Run("resnet8-cifar", str(small_folder), epochs=2, batch=8, out=str(out)), show=False)
    return out


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Pascal VOC folder of one image with one box."""
    folder = tmp_path_factory.mktemp("boxes")
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir()
    Image.new("RGB", (64, 64)).save(folder / "JPEGImages" / "a.png")
    corners = "".join(
        f"<{name}>{side}</{name}>" for name, side in zip(("xmin", "ymin", "xmax", "ymax"), (5, 5, 40, 40), strict=True)
    )
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><object><name>red</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    return folder


def test_a_run_is_exported_and_used_by_name(
    run: Path, boxes: Path, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.onnx"
    assert main(["export", str(run), "--to", "onnx", "--out", str(file), "--data", str(small_folder)]) == 0
    said = capsys.readouterr().out
    assert "0 of 6 answers changed" in said and "loaded again by ONNX Runtime" in said
    header = open_exported(file).header
    assert json.loads(header["labels"]) == ["digit-0", "digit-1", "digit-2"]
    assert json.loads(header["preprocessing"])["size"] == 16
    for network in (run, file):
        images = str(small_folder / "digit-1")
        assert main(["predict", str(network), images, "--format", "csv", "--out", str(tmp_path / f"{network.name}.csv")]) == 0
    ours, theirs = ((tmp_path / f"{name}.csv").read_text().splitlines() for name in ("digits", "digits.onnx"))
    assert [line.split(",")[:3] for line in ours] == [line.split(",")[:3] for line in theirs]
    assert deepres.evaluate(str(file), str(small_folder)).top1 == deepres.evaluate(str(run), str(small_folder)).top1
    data = ["--data", str(small_folder)]
    for args, says in (
        (["optimize", str(file)], "digits.onnx: is an exported file, which ONNX Runtime"),
        (["info", str(file)], "is an exported file, which can be neither trained nor looked into"),
        (["look", str(file), *data, "--out", str(tmp_path / "out")], "can be neither trained nor looked into"),
        (["shrink", str(file), *data, "--out", str(tmp_path / "out")], "can be neither trained nor looked into"),
        (
            ["ghost", str(file), *data, "--budget", "0.5", "--out", str(tmp_path / "out")],
            "can be neither trained nor looked into",
        ),
        (["info", str(file), "--dropout", "0.5"], "--dropout shape a network of ours"),
        (["train", "--net", str(file), *data, "--out", str(tmp_path / "out")], "can be neither trained nor looked into"),
        (["train", "--net", str(file), *data, "--dropout", "0.5"], "takes no option dropout"),
        (["detect", "train", "--net", str(file), "--data", str(boxes)], "can be neither trained nor looked into"),
        (["evaluate", str(file), *data, "--size", "24"], "takes images of 16 pixels only, and would get images of 24"),
        (
            ["predict", str(file), str(small_folder), "--size", "24"],
            "takes images of 16 pixels only, and would get images of 24",
        ),
    ):
        assert main(args) == 2
        assert says in capsys.readouterr().err, args
    assert not (tmp_path / "out").exists()


def test_static_ghosts_are_exported_and_others_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    from deepres.ghosting import Ghost, Settings

    ghost = Ghost(deepres.load(run), Settings())
    assert deepres.export(ghost, "torch-export", tmp_path / "net.pt2").changed == 0
    for ghost, reason in (
        (Ghost(deepres.load(run), Settings(skip_threshold=0.5)), "the ghost's gates choose for each input which blocks run"),
        (Ghost(deepres.load(run), Settings(exit_threshold=0.5)), "the ghost keeps a deadline by the clock"),
    ):
        ghost.deadline = 0.1
        with pytest.raises(DeepresError, match=f"cannot be exported, as {reason}"):
            deepres.export(ghost, "torch-export", tmp_path / "other.pt2")
    assert not (tmp_path / "other.pt2").exists()


class Different(nn.Module):
    """A network that answers otherwise while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        sign = -1 if torch.compiler.is_exporting() else 1
        return sign * self.fc(x).mean((2, 3))


def test_a_file_with_other_answers_is_not_kept(tmp_path: Path) -> None:
    target = tmp_path / "net.pt2"
    target.write_text("before")
    with pytest.raises(DeepresError, match=r"not written, as torch\.export of PyTorch \S+ gives other answers"):
        deepres.export(Different(), "torch-export", target, size=16)
    assert target.read_text() == "before" and [*tmp_path.iterdir()] == [target]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = deepres.create("resnet8-cifar")
    with pytest.raises(DeepresError, match="cannot export to 'onyx'; did you mean 'onnx'"):
        deepres.export(model, "onyx")  # type: ignore[arg-type]
    with pytest.raises(DeepresError, match=r"net\.pt: a file of onnx ends in \.onnx; name it .*net\.onnx"):
        deepres.export(model, "onnx", tmp_path / "net.pt")
    with pytest.raises(DeepresError, match=r"opset 9: torch\.onnx writes 18 to 23"):
        deepres.export(model, "onnx", tmp_path / "net.onnx", opset=9)
    assert main(["export", "resnet18"]) == 2
    assert "would be freshly initialised" in capsys.readouterr().err
    deepres.models.annotate(model, classes=["cat", "dog"])
    with pytest.raises(DeepresError, match="its list of labels has 2 names, and the network has 10 outputs"):
        deepres.export(model, "torch-export", tmp_path / "net.pt2", size=16)
    with pytest.raises(DeepresError, match="has 10 outputs, and 2 classes were given"):
        deepres.predict(model, [tmp_path], classes=["cat", "dog"])
    assert exporting.SUFFIX.keys() == {"onnx", "openvino", "torch-export", "aoti"}
