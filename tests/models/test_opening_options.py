"""What a network is opened with: options, sizes of its inputs, half precision, and paths with a home folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import Prepare, Tokens
from deepres.models import data_for, open_model, replace_head


def test_options_of_our_networks_are_not_taken_for_others_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = deepres.save(open_model("timm:test_resnet", classes=3).model, tmp_path / "timm.safetensors")
    for reference in ("timm:test_resnet", "torchvision.models:resnet18", str(file)):
        with pytest.raises(DeepresError, match=r"takes no option '?(dropout|survival)"):
            open_model(reference, survival=0.5, dropout=0.1)
    assert main(["train", "--net", "timm:test_resnet", "--survival", "0.5", "--out", str(tmp_path / "out")]) == 2
    assert "takes no option survival" in capsys.readouterr().err and not (tmp_path / "out").exists()
    opened = open_model("timm:test_resnet", num_classes=4, in_channels=1)  # these it has under other names
    assert (opened.spec.classes, opened.spec.channels) == (4, 1)
    ours = deepres.save(deepres.create("resnet8-cifar"), tmp_path / "ours.safetensors")
    assert open_model(ours, dropout=0.25).model.config.dropout == 0.25
    with pytest.raises(DeepresError, match="takes no option 'wdiths'; did you mean 'widths'"):
        open_model(ours, wdiths=3)


def test_images_of_another_size_are_prepared_alike_with_data_and_without(small_folder: Path, tmp_path: Path) -> None:
    model = deepres.create("resnet8-cifar", in_channels=1, num_classes=3)
    plane = tuple(tuple(0.1 + 0.01 * (row + column) for column in range(16)) for row in range(16))
    for mean in ((0.2,), (plane,)):
        notes = Prepare(16, 1, mean, (0.3,), resize=20, interpolation="bicubic").to_notes()
        path = deepres.save(model, tmp_path / "net.safetensors", classes=["digit-0", "digit-1", "digit-2"], prepare=notes)
        opened = open_model(path)
        prepare = opened.preparation(32)
        wanted = 0.2 if mean == (0.2,) else sum(map(sum, plane)) / 256
        assert prepare.mean == pytest.approx((wanted,)) and prepare.std == (0.3,)
        assert (prepare.size, prepare.resize, prepare.interpolation) == (32, 40, "bicubic")
        assert data_for(opened, small_folder, size=32).data.prepare == prepare
        assert opened.preparation() == opened.preparation(16) == opened.prepare
        assert deepres.evaluate(path, small_folder, size=32).n > 0


def test_a_language_model_has_no_preparation_of_images(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11, n_positions=16, n_inner=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(DeepresError, match="reads tokens, and takes no images"):
        open_model(f"hf:{tmp_path}").preparation()
    tokens = open_model(deepres.save(deepres.create("gpt-tiny"), tmp_path / "g.safetensors", prepare=Tokens(8).to_notes()))
    assert tokens.preparation(4) == Tokens(4)


def test_weights_in_half_precision_are_used_in_float32(tmp_path: Path, small_folder: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {i: f"digit-{i}" for i in range(3)}
    config = transformers.ViTConfig(**size, image_size=16, patch_size=8, id2label=labels)
    model = transformers.ViTForImageClassification(config).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    opened = open_model(f"hf:{tmp_path / 'half'}")
    again = deepres.load(deepres.save(opened.model, tmp_path / "net.safetensors"))
    for one in (opened.model, again):
        assert {p.dtype for p in one.parameters()} == {torch.float32}
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(opened.model(x).logits, model.float()(x).logits) and torch.equal(again(x).logits, model(x).logits)
    assert deepres.evaluate(f"hf:{tmp_path / 'half'}", small_folder, size=16).n > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_fresh_head_is_of_the_networks_precision(dtype: torch.dtype) -> None:
    model = deepres.create("resnet8-cifar").to(dtype).eval()
    replace_head(model, 3)
    assert model(torch.zeros(1, 3, 8, 8, dtype=dtype)).shape == (1, 3) and model.head.fc.weight.dtype is dtype


def test_a_compiled_network_is_saved_as_it_was_written(tmp_path: Path) -> None:
    model = deepres.create("resnet50", width=0.05, num_classes=3, stride_in="1x1").eval()  # which the tensors do not tell
    again = deepres.load(deepres.save(torch.compile(model), tmp_path / "net.safetensors"))
    assert again.config == model.config


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DeepresError, match=r"file/net\.safetensors: could not be written"):
        deepres.save(deepres.create("resnet8-cifar"), tmp_path / "file" / "net.safetensors")


def test_home_is_expanded_in_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert deepres.save(deepres.create("resnet8-cifar"), "~/net.safetensors") == tmp_path / "home" / "net.safetensors"
    assert deepres.load("~/net.safetensors").config == open_model("~/net.safetensors").model.config
    deepres.save_pretrained("~/net.safetensors", "~/hub")
    assert [path.name for path in tmp_path.iterdir()] == ["home"] and deepres.from_pretrained("~/hub").config.depth == 8
    assert open_model("hf:~/hub").model.config.depth == 8
