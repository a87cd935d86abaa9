"""References to networks: what each names, and a sentence for what names nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.models import open_model


def test_a_reference_builds_the_network_that_it_names(tmp_path: Path) -> None:
    model = open_model("torchvision.models:resnet18", classes=7).model
    assert model.fc.out_features == 7
    torch.save(model.state_dict(), tmp_path / "r18.pt")
    again = open_model("torchvision.models:resnet18", weights=tmp_path / "r18.pt").model
    assert torch.equal(again.fc.weight, model.fc.weight)
    assert len(deepres.sites(open_model("timm:resnet18", classes=3, channels=1).model)) == 8
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.ViTForImageClassification(transformers.ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    assert len(deepres.sites(open_model(f"hf:{tmp_path / 'vit'}").model)) == 4
    with pytest.raises(DeepresError, match=r"not the weights of torchvision\.models:resnet34"):
        open_model("torchvision.models:resnet34", weights=tmp_path / "r18.pt")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("torchvision.models:resnet1", "no attribute 'resnet1'"),
        ("nowhere:resnet", "No module named 'nowhere'"),
        ("timm:resnet1", "Unknown model"),
        ("hf:.", "no config.json"),
        ("resnet57-cifar", "the nearest: 56 and 62"),
        ("json:dumps", "cannot be called"),
    ],
)
def test_a_reference_to_nothing_gets_a_sentence(
    reference: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeepresError, match=says):
        open_model(reference)


@pytest.mark.parametrize("data", ["digits", "play.txt"])
@pytest.mark.parametrize(
    "command", [["shrink"], ["ghost", "--budget", "0.6"], ["look"], ["evaluate"]], ids=lambda words: words[0]
)
def test_a_network_that_classifies_texts_is_refused_with_the_reason(
    command: list[str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("play.txt").write_text("to be, or not to be: that is the question.\n" * 60)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    transformers.BertForSequenceClassification(transformers.BertConfig(**shape, num_labels=3)).save_pretrained("bert")
    assert main([*command, "hf:bert", "--data", data]) == 2
    said = capsys.readouterr().err
    assert "classifies texts (3 classes, and 50 tokens), and labelled texts are not supported as data" in said
