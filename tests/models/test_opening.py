"""One way in: wrapped checkpoints, hostile headers, labels and preprocessing of the network itself."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from digit_folders import write_digits
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import open_data
from deepres.evaluation import evaluate
from deepres.models import annotate, data_for, load_weights, match_labels, open_model, open_with_data

Wrap = Callable[[dict[str, Tensor]], dict[str, Any]]


def prefixed(prefix: str) -> Wrap:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPED: dict[str, Wrap] = {
    "plain": lambda state: dict(state),
    "ddp": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "ddp of compiled, nested": lambda state: {"net": prefixed("module._orig_mod.")(state), "acc": 91.0},
    "nested twice": lambda state: {"checkpoint": {"model_state_dict": state}, "epoch": 3},
    "lightning": lambda state: {"state_dict": {**prefixed("net.")(state), "criterion.weight": torch.ones(3)}, "epoch": 1},
    "backbone": lambda state: {**prefixed("backbone.")(state), "criterion.weight": torch.ones(3)},
    "encoder": lambda state: {"model": prefixed("encoder.")(state), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "averaged model": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.")(state)},
    "namespace": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, data=pathlib.Path("x"))},
    "numpy scalars": lambda state: {"model": state, "best": np.float64(76.1), "top5": np.float32(93), "seen": np.arange(3)},
}


def other_tiny() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=6)


@pytest.mark.parametrize("kind", list(WRAPPED))
@pytest.mark.parametrize("ours", [True, False])
def test_wrapped_checkpoints_load_by_every_way(kind: str, ours: bool, tmp_path: Path) -> None:
    net = "resnet8-cifar" if ours else "timm:test_resnet"
    model = deepres.create(net, num_classes=6) if ours else other_tiny()
    torch.save(WRAPPED[kind](model.state_dict()), tmp_path / "w.pth")
    opened = [
        open_model(net, weights=tmp_path / "w.pth").model,
        deepres.load(tmp_path / "w.pth", net=net, **({"num_classes": 6} if ours else {})),
    ]
    if ours:
        opened.append(deepres.load(tmp_path / "w.pth"))  # the network is read off the tensors
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for again in opened:
            assert torch.equal(again(x), model.eval()(x))


def test_averaged_weights_are_taken_and_named(tmp_path: Path) -> None:
    raw, averaged = other_tiny(), other_tiny()
    torch.save({"model": raw.state_dict(), "model_ema": prefixed("module.")(averaged.state_dict())}, tmp_path / "w.pth")
    opened = open_model("timm:test_resnet", weights=tmp_path / "w.pth")
    assert torch.equal(opened.model.fc.weight, averaged.fc.weight)
    assert len(opened.remarks) == 1 and "averaged weights in model_ema, not those of model" in opened.remarks[0]


def test_foreign_tensors_are_named() -> None:
    model = other_tiny()
    report = load_weights(model, {**prefixed("net.")(model.state_dict()), "criterion.weight": torch.ones(3)})
    assert report.complete and report.remarks == ("left out what is not the network's: criterion.weight",)
    with pytest.raises(DeepresError, match=r"unexpected \(layer1\.7\.conv1\.weight\)"):  # a deeper network's
        load_weights(model, {**model.state_dict(), "layer1.7.conv1.weight": torch.ones(3)})


NETS = ["timm:test_convnext", "timm:test_resnet", "timm:test_vit", "timm:resnetv2_18", "torchvision.models:resnet18"]


@pytest.mark.parametrize("net", NETS)
def test_classes_and_channels_are_read_by_name(net: str, tmp_path: Path) -> None:
    kind, _, name = net.partition(":")
    if kind == "timm":
        model = timm.create_model(name, num_classes=7, in_chans=1)
    else:
        model = torchvision.models.get_model(name, num_classes=7)
    state = dict(sorted(model.state_dict().items(), reverse=True))
    save_file(state, tmp_path / "w.safetensors")
    opened = open_model(net, weights=tmp_path / "w.safetensors", classes=3)
    assert opened.spec.classes == 7 and opened.spec.channels == (1 if kind == "timm" else 3)
    again = opened.model.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_a_convnext_of_torchvision_as_safetensors(tmp_path: Path) -> None:
    model = torchvision.models.convnext_tiny(num_classes=4)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    opened = open_model("torchvision.models:convnext_tiny", weights=tmp_path / "w.safetensors")
    assert torch.equal(opened.model.classifier[2].weight, model.classifier[2].weight)


@pytest.mark.parametrize("net", ["torchvision.models:resnet18", "resnet18"])
def test_a_head_with_dropout_in_front(net: str, tmp_path: Path) -> None:
    model = torchvision.models.resnet18(num_classes=5)
    linear = model.fc
    model.fc = nn.Sequential(nn.Dropout(0.2), linear)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    opened = open_model(net, weights=tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(x), model.eval()(x))
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5))  # another head, which cannot be put there
    with pytest.raises(DeepresError, match="another network"):
        load_weights(torchvision.models.resnet18(num_classes=5), model.state_dict())


@pytest.mark.parametrize("net", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext", "resnet8-cifar"])
def test_the_head_is_left_out_for_other_classes(net: str, tmp_path: Path) -> None:
    model = open_model(net, classes=9).model
    torch.save({"state_dict": prefixed("module.")(model.state_dict())}, tmp_path / "w.pth")
    opened = open_model(net, weights=tmp_path / "w.pth", classes=4, new_head=True)
    assert opened.spec.classes == 4 and "the head was left out" in opened.remarks[0]
    path = opened.spec.classifier
    for name, tensor in opened.model.state_dict().items():
        if not name.startswith(f"{path}."):
            assert torch.equal(tensor, model.state_dict()[name]), name
    body = ("conv1", "qkv", "mlp")
    broken = {name: tensor for name, tensor in model.state_dict().items() if not any(word in name for word in body)}
    with pytest.raises(DeepresError, match="missing"):
        load_weights(open_model(net, classes=4).model, broken, new_head=True)


def tiny_vit(folder: Path, labels: list[str], **options: Any) -> nn.Module:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**size, image_size=16, patch_size=8, id2label=dict(enumerate(labels)), **options)
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(folder)
    return model


def test_a_saved_run_of_another_library_gets_a_new_head(tmp_path: Path) -> None:
    tiny_vit(tmp_path / "vit", ["a", "b", "c"])
    opened = open_model(f"hf:{tmp_path / 'vit'}", classes=5, new_head=True)
    assert opened.spec.classes == 5 and opened.classes is None and "head was left out" in opened.remarks[0]
    again = deepres.load(deepres.save(opened.model, tmp_path / "five.safetensors", classes=list("vwxyz")))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x).logits, opened.model(x).logits)


def tampered(path: Path, header: dict[str, Any]) -> Path:
    save_file({"w": torch.zeros(1)}, path, metadata={"deepres": json.dumps(header)})
    return path


VIT = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"reference": "os:system"},
        {"reference": "builtins:exec"},
        {"reference": "hostile_builder:build"},
        {"reference": "torchvision.models:../../hostile_builder"},
        {"reference": "torchvision.models:get_model"},
        {"reference": "torchvision.models:list_models"},
        {"reference": "timm:hf-hub:someone/something"},
        {"reference": "timm:local-dir:."},
        {"reference": "transformers:pipeline", "config": VIT},
        {"reference": "transformers:AutoModel", "config": VIT},
        {
            "reference": "transformers:ViTForImageClassification",
            "config": {**VIT, "auto_map": {"AutoModel": "x--hostile.Model"}},
        },
        {"reference": "transformers:ViTForImageClassification", "config": {**VIT, "trust_remote_code": True}},
        {"reference": "transformers:ViTForImageClassification", "config": {**VIT, "_attn_implementation": "someone/kernel"}},
        {"reference": "transformers:ViTForImageClassification", "config": {**VIT, "sub": [{"use_pretrained_backbone": True}]}},
        {"reference": "transformers:ViTForImageClassification", "config": None},
        {"reference": "transformers:ViTForImageClassification", "config": {"model_type": "no-such-type"}},
        {"reference": ["os", "system"]},
        {"reference": "timm:test_resnet", "classes": "10; import os"},
        {"reference": "timm:test_resnet", "hook": "os:system"},
        {},
    ],
)
def test_a_hostile_header_is_refused(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "hostile_builder.py").write_text(f"{runs}\ndef build(**_): {runs}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tampered(tmp_path / "w.safetensors", {"origin": given, "notes": {}})
    for way in (lambda: deepres.load(path), lambda: open_model(path), lambda: deepres.evaluate(path, "digits")):
        with pytest.raises(DeepresError):
            way()
    assert not (tmp_path / "ran").exists()


def test_a_builder_of_the_users_own_is_taken_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import timm\ndef build(num_classes=5):\n    return timm.create_model('test_resnet', num_classes=num_classes)\n"
    (tmp_path / "my_nets_a.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tampered(
        tmp_path / "w.safetensors", {"origin": {"reference": "my_nets_a:build"}, "notes": {"classes": list("abcd")}}
    )
    state = timm.create_model("test_resnet", num_classes=4).state_dict()
    header = {"origin": {"reference": "my_nets_a:build", "classes": 4}, "notes": {"classes": list("abcd")}}
    save_file(state, path, metadata={"deepres": json.dumps(header)})
    with pytest.raises(DeepresError, match="code named in a weights file is not run without your word"):
        deepres.load(path)
    opened = open_model("my_nets_a:build", weights=path)
    assert opened.classes == tuple("abcd") and torch.equal(opened.model.fc.weight, state["fc.weight"])
    assert torch.equal(deepres.load(path).fc.weight, state["fc.weight"])  # it has been named in this process


def test_a_run_of_a_users_own_builder_loads_with_the_users_word(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a fresh process, in which nobody has named the builder; its module lies in the current folder."""
    code = "import pathlib, timm\npathlib.Path('ran').touch()\ndef build(num_classes=3):\n"
    code += "    return timm.create_model('test_resnet', num_classes=num_classes)\n"
    (tmp_path / "my_nets_b.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    notes = {"classes": [f"digit-{i}" for i in range(3)], "prepare": open_data(small_folder, size=32).prepare.to_notes()}
    header = {"origin": {"reference": "my_nets_b:build", "classes": 3}, "notes": notes}
    (tmp_path / "run").mkdir()
    save_file(state, tmp_path / "run" / "best.safetensors", metadata={"deepres": json.dumps(header)})
    command = ["evaluate", "run", "--data", str(small_folder), "--json"]
    assert main(command) == 2
    assert "add --builder my_nets_b:build to the command" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("DEEPRES_BUILDERS", "other:build, my_nets_b:build")
    assert main(command) == 0
    assert "my_nets_b" in sys.modules and (tmp_path / "ran").exists()
    monkeypatch.delenv("DEEPRES_BUILDERS")
    assert main(command) == 2


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": other_tiny().state_dict(), "args": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(DeepresError, match="could run code"):
        open_model("timm:test_resnet", weights=tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_labels_match_by_name_then_by_position() -> None:
    by_name = match_labels(["Golden_Retriever", "cat", "tench, Tinca tinca"], 3, ["cat", "golden retriever", "Tench"])
    assert by_name.by == "name" and by_name.order == (1, 0, 2) and "by name" in by_name.remark
    assert match_labels(["a", "b"], 2, ["a", "b"]).remark == ""
    assert match_labels(["n02", "n01", "n03"], 3, ["n01", "n03"]).order == (1, 2)  # fewer classes than outputs
    by_place = match_labels(["chat", "chien"], 2, ["cat", "dog"])
    assert by_place.by == "position" and "by position" in by_place.remark
    assert match_labels(None, 2, ["cat", "dog"]).by == "position"
    assert not match_labels(["cat", "dog", "bird"], 3, ["cat", "dog", "plane"]).fits
    assert not match_labels(["chat", "chien"], 2, ["cat", "dog"], positional=False).fits
    assert not match_labels(None, 1000, ["cat", "dog"]).fits


def test_wordnet_ids_are_matched_by_imagenets_order() -> None:
    ids = ["n01440764", "n03250847", "n15075141"]  # tench, drumstick, toilet tissue
    assert (
        match_labels(None, 1000, ids).order == (0, 542, 999)
        and "ImageNet's usual order" in match_labels(None, 1000, ids).remark
    )
    own = [f"thing {i}" for i in range(1000)]
    assert not match_labels(own, 1000, ids).fits  # a network of 1000 other classes
    own[0], own[542], own[999] = "tench", "drumstick", "toilet tissue, toilet paper, bathroom tissue"
    assert match_labels(own, 1000, ids).order == (0, 542, 999)
    assert not match_labels(None, 1000, ["n99999999", "n01440764"]).fits
    assert match_labels(None, 3, ids).by == "position"


def test_a_network_of_1000_classes_is_tested_on_a_folder_of_some(tmp_path: Path) -> None:
    for name in ("n03250847", "n15075141"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)).eval()
    nn.init.zeros_(net[3].weight)
    net[3].bias.data = torch.zeros(1000).index_fill_(0, torch.tensor([542]), 1.0)
    pair = data_for(open_model(net), tmp_path, size=8)
    assert pair.fits and len(pair.data.classes) == 1000 and pair.data.classes[542] == "n03250847"
    assert set(pair.data.test.labels.tolist()) == {542, 999}
    assert evaluate(net, pair.data).top1 == 50.0


class Oracle(nn.Module):
    """Always right on the blue level of ``levels``, with its outputs in another order than a folder's."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        annotate(self, classes=["digit-2", "DIGIT 0", "digit_1"])
        self.first, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return -torch.stack([(level - value).abs() for value in self.levels], 1)


def test_a_network_that_is_always_right_makes_no_error(tmp_path: Path) -> None:
    from PIL import Image

    for label in range(3):
        for i in range(20):
            folder = tmp_path / f"digit-{label}"
            folder.mkdir(exist_ok=True)
            Image.new("RGB", (100, 100), (80 * label,) * 3).save(folder / f"{i}.png")
    data = open_data(tmp_path, size=16, channels=3)
    prepare = data.prepare
    levels = [float(prepare.normalise(torch.full((1, 3, 1, 1), 80 * i, dtype=torch.uint8)).mean()) for i in (2, 0, 1)]
    said: list[str] = []
    found = deepres.evaluate(Oracle(levels), data, say=said.append)
    assert found.top1 == 0 and set(found.per_class) == {"digit-0", "digit-1", "digit-2"}
    assert any("by name" in line for line in said)
    assert deepres.evaluate([Oracle(levels), Oracle(levels)], data).top1 == 0


def test_the_processor_of_a_folder_says_how_to_prepare(tmp_path: Path) -> None:
    tiny_vit(tmp_path / "vit", ["digit-1", "digit-0", "digit-2"])
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3, "size": {"height": 16, "width": 16}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    folder = write_digits(tmp_path / "data", side=16, per_class=10)
    paired = open_with_data(f"hf:{tmp_path / 'vit'}", folder)
    prepare = paired.data.prepare
    assert (prepare.mean, prepare.std, prepare.size, prepare.interpolation) == ((0.5,) * 3, (0.25,) * 3, 16, "bicubic")
    assert paired.fits and paired.match.order == (1, 0, 2) and paired.data.classes == ("digit-1", "digit-0", "digit-2")


def test_timms_own_preprocessing_is_used_with_weights(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pth")
    folder = write_digits(tmp_path / "data", side=120, per_class=10)
    prepare = open_with_data("timm:test_resnet", folder, weights=tmp_path / "w.pth").data.prepare
    assert prepare.mean == prepare.std == (0.5, 0.5, 0.5)
    assert (prepare.size, prepare.resize) == (160, 168)  # a crop of 0.95
    ghostly = data_for(open_model("timm:test_resnet", weights=tmp_path / "w.pth"), "digits")
    assert not ghostly.fits and ghostly.data.prepare.size == 8 and "10 classes and the network 3" in ghostly.remarks[0]


def test_evaluate_leaves_a_model_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepres.create("resnet8-cifar", in_channels=1).double()
    moved: list[Any] = []
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: moved.append(args) or self)
    with pytest.raises(RuntimeError):  # float32 images; what counts is that nothing was moved on the way there
        deepres.evaluate(model, "digits")
    assert moved == []


def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Path) -> None:
    model = open_model("timm:test_vit", classes=3).model
    deepres.sites
    from deepres.adapters.surgery import delete_blocks

    delete_blocks(model, ["blocks.2"])
    again = deepres.load(deepres.save(model, tmp_path / "good.safetensors"))
    assert len(again.blocks) == len(model.blocks) == 5
    del model.blocks[1]  # behind the library's back
    with pytest.raises(DeepresError, match="could not be loaded from it again"):
        deepres.save(model, tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()


def test_a_transformer_of_ours_is_saved_whole(tmp_path: Path) -> None:
    model = open_model("vit-s16", classes=3, depth=1, image=32, width=16, heads=2).model
    again = deepres.load(deepres.save(model, tmp_path / "t.safetensors"))
    assert again.config == model.config
    assert load_file(tmp_path / "t.safetensors").keys() <= again.state_dict().keys()


def test_an_untrained_network_is_not_used(small_folder: Path) -> None:
    with pytest.raises(DeepresError, match="resnet8-cifar: would be freshly initialised"):
        deepres.evaluate("resnet8-cifar", "digits")
    with pytest.raises(DeepresError, match="timm:test_resnet: would be freshly initialised"):
        deepres.predict("timm:test_resnet", [small_folder])
    with pytest.raises(DeepresError, match="nothing: no such file or folder, and unknown network 'nothing'"):
        open_model("nothing")
