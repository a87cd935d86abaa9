"""Folders for the Hugging Face Hub: there and back to the bit, opened by their libraries, refused where hostile, and uploaded whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import transformers
from loopback_hub import LoopbackHub, loopback_hub
from PIL import Image
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.adapters.surgery import delete_blocks
from deepres.cli.main import main
from deepres.data import Prepare
from deepres.models import HubFolder, from_pretrained, open_language_model, open_model, push, save_pretrained, vocabulary_of
from deepres.models.store import write_tensors

SAVED = Path(__file__).parents[1] / "saved"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a folder for the Hub."""
    out = tmp_path_factory.mktemp("hub") / "digits"
    save_pretrained(SAVED / "run", out, license="apache-2.0")
    return out


@torch.no_grad()
def same(first: nn.Module, second: nn.Module, inputs: Tensor) -> bool:
    a, b = first(inputs), second(inputs)
    return torch.equal(getattr(a, "logits", a), getattr(b, "logits", b))


@pytest.mark.parametrize("name", ["run", "shrunk"])
def test_a_run_there_and_back(name: str, tmp_path: Path) -> None:
    written = save_pretrained(SAVED / name, tmp_path / "out")
    assert written.files == ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    before = open_model(SAVED / name)
    for reference in (tmp_path / "out", f"hf:{tmp_path / 'out'}"):
        after = open_model(reference)
        assert (after.spec, after.classes, after.prepare, after.trained) == (before.spec, before.classes, before.prepare, True)
        assert same(before.model, after.model, torch.randn(3, 1, 8, 8))
    assert same(before.model, from_pretrained(tmp_path / "out"), torch.randn(3, 1, 8, 8))
    assert same(before.model, deepres.load(tmp_path / "out" / "model.safetensors"), torch.randn(3, 1, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside it


def test_the_card_holds_what_the_run_measured_and_no_more(folder: Path, tmp_path: Path) -> None:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "deepres",
        "image-classification",
    )
    told = json.loads((SAVED / "run" / "result.json").read_text())["test"]
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy" and result.metric_value == pytest.approx(1 - told["top1"] / 100, abs=1e-6)
    assert "test error 29.81 % (top-5 4.74 %) on the 359 images" in card.text and "seed 0" in card.text
    assert (
        "recipe digits: 2 epochs" in card.text and "hardware: not recorded" in card.text and "not measured: speed" in card.text
    )
    (tmp_path / "alone").mkdir()
    shutil.copy(SAVED / "run" / "best.safetensors", tmp_path / "alone" / "net.safetensors")
    save_pretrained(tmp_path / "alone" / "net.safetensors", tmp_path / "out", name="A net")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert "# A net" in card.text and "Nothing: the network came without the result" in card.text
    assert card.data.eval_results is None and card.data.license is None
    shrunk = save_pretrained(SAVED / "shrunk", tmp_path / "shrunk").folder
    assert "Of its 6 residual blocks 1 were removed" in (shrunk / "README.md").read_text()


def test_timm_opens_its_own(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3).eval()
    deepres.models.annotate(model, classes=["a", "b", "c"], prepare=Prepare.usual(64).to_notes())
    written = save_pretrained(model, tmp_path / "out")
    assert written.library == "timm" and "timm.create_model('local-dir:" in written.lines()[1]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    ours = open_model(tmp_path / "out")
    x = torch.randn(2, 3, 64, 64)
    assert same(model, theirs, x) and same(model, ours.model, x)
    assert ours.classes == ("a", "b", "c") and ours.prepare == Prepare.usual(64)
    assert timm.data.resolve_model_data_config(theirs)["input_size"] == (3, 64, 64)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["label_names"] == ["a", "b", "c"] and "license" not in settings["pretrained_cfg"]
    from timm.models._hub import save_for_hf

    save_for_hf(model, str(tmp_path / "theirs"), model_config={"label_names": ["x", "y", "z"]}, safe_serialization=True)
    others = open_model(f"hf:{tmp_path / 'theirs'}")  # which timm wrote itself
    assert same(model, others.model, x) and others.classes == ("x", "y", "z") and others.prepare is not None
    shorter = save_pretrained(open_model(SAVED / "timm-vit.safetensors").model, tmp_path / "shorter")
    assert shorter.library == "deepres" and "timm does not open the folder" in shorter.remarks[0]
    side = torch.randn(1, 3, 160, 160)
    assert same(deepres.load(SAVED / "timm-vit.safetensors"), from_pretrained(tmp_path / "shorter"), side)


def test_transformers_opens_its_own(tmp_path: Path) -> None:
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8, num_labels=3
    )  # fmt: skip
    model = transformers.ViTForImageClassification(settings).eval()
    deepres.models.annotate(model, classes=["cat", "dog", "eel"], prepare=Prepare.usual(32).to_notes())
    x = torch.randn(2, 3, 32, 32)
    for name in ("whole", "without a layer", "without a branch"):
        if name == "without a layer":
            delete_blocks(model, ["vit.layers.1"])
        if name == "without a branch":
            next(site for site in deepres.sites(model) if "attention" in site.kind).remove()
        written = save_pretrained(model, tmp_path / name)
        theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / name).eval()
        ours = open_model(f"hf:{tmp_path / name}")
        assert written.library == "transformers" and same(model, theirs, x) and same(model, ours.model, x), name
        assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "eel"} and ours.classes == ("cat", "dog", "eel")
        assert ours.prepare == Prepare.usual(32) and len(deepres.sites(ours.model)) == len(deepres.sites(model))
        assert same(model, deepres.load(tmp_path / name / "model.safetensors"), x)
    assert "zeros" in written.remarks[0]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "whole", backend="pil")
    photo = Image.fromarray(torch.randint(0, 256, (48, 60, 3), dtype=torch.uint8).numpy())
    theirs = processor(photo, return_tensors="pt")["pixel_values"]
    prepare = Prepare.usual(32)
    torch.testing.assert_close(theirs, prepare.normalise(prepare.image(photo)[None]), rtol=0, atol=0.05)


def test_a_network_of_torchvision_keeps_its_name(tmp_path: Path) -> None:
    model = open_model("torchvision.models:mobilenet_v3_small", classes=4).model
    deepres.models.annotate(model, classes=list("abcd"))
    save_pretrained(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == "torchvision.models:mobilenet_v3_small"
    assert same(model, from_pretrained(tmp_path / "out"), torch.randn(2, 3, 64, 64))
    with pytest.raises(DeepresError, match="ResNet: how it is built is not known"):
        save_pretrained(torchvision.models.resnet18(), tmp_path / "refused")


def test_the_network_of_the_caller_stays_as_it_is(tmp_path: Path) -> None:
    model = deepres.load(SAVED / "run").train()
    save_pretrained(model, tmp_path / "out")
    assert model.training and all(module.training for module in model.modules())


def test_language_models_take_their_tokens_along(tmp_path: Path) -> None:
    letters = "\n abcdefghijklmnopqrstuvwxyz"
    model = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=len(letters), context=16)
    prepare = {"size": 16, "channels": 0, "tokens": {"kind": "characters", "names": list(letters)}}
    path = deepres.save(model, tmp_path / "letters.safetensors", classes=list(letters), prepare=prepare)
    push(path, tmp_path / "out")
    for reference in (tmp_path / "out", f"hf:{tmp_path / 'out'}"):
        language = open_language_model(reference)
        assert language.vocabulary == vocabulary_of(reference) == open_language_model(path).vocabulary
        assert same(open_language_model(path).model, language.model, torch.arange(8)[None])
    from deepres.data.vocabulary import train_byte_pairs

    pairs = train_byte_pairs(["to be or not to be, that is the question"] * 9, 270)
    model = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=len(pairs), context=16)
    notes = {"size": 16, "channels": 0, "tokens": pairs.to_notes()}
    push(deepres.save(model, tmp_path / "pairs.safetensors", prepare=notes), tmp_path / "pairs")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "pairs")
    assert theirs.encode("that is not") == open_language_model(tmp_path / "pairs").vocabulary.encode("that is not").tolist()


def test_settings_of_generate_are_kept(tmp_path: Path) -> None:
    """They are no part of the configuration, and every way out and in has to take them along: files, runs and folders, shrunk or not."""
    settings = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=16, n_inner=8)
    model = transformers.GPT2LMHeadModel(settings).eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=[3, 5], pad_token_id=0, do_sample=True, top_k=7)
    wanted = model.generation_config.to_diff_dict()
    for name in ("whole", "without a layer"):
        if name == "without a layer":
            delete_blocks(model, ["transformer.h.1"])
        again = deepres.load(deepres.save(model, tmp_path / f"{name}.safetensors"))
        assert again.generation_config.to_diff_dict() == wanted
        save_pretrained(again, tmp_path / name)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name)
        for found in (from_pretrained(tmp_path / name), deepres.load(tmp_path / name / "model.safetensors"), theirs):
            assert found.generation_config.to_diff_dict() == wanted, name
    (tmp_path / "whole" / "generation_config.json").write_text("{")
    with pytest.raises(DeepresError, match=r"generation_config.json: cannot be read as JSON"):
        from_pretrained(tmp_path / "whole")


def edit(folder: Path, to: Path, **changes: object) -> Path:
    """A copy of ``folder`` whose configuration is changed; None deletes an entry."""
    shutil.copytree(folder, to)
    settings = json.loads((to / "config.json").read_text())
    for name, value in changes.items():
        target, key = (settings, name) if "__" not in name else (settings[name.split("__")[0]], name.split("__")[1])
        if value is None:
            del target[key]
        else:
            target[key] = value
    (to / "config.json").write_text(json.dumps(settings))
    return to


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "os:system", "model_args": {}}, "'os:system' builds its network, which is neither"),
        ({"architecture": "transformers:pipeline", "model_args": {"config": {}}}, "transformers:pipeline: not a model class"),
        (
            {"architecture": "transformers:ViTModel", "model_args": {"config": {"auto_map": {"a": "b"}}}},
            "sets 'auto_map', which fetches",
        ),
        ({"architecture": "torchvision.models:resnet18", "model_args": {"classes": 10}}, "of another network"),
        ({"architecture": 3}, "no architecture with model_args"),
        ({"architecture": "ResNets"}, "neither torchvision's, timm's nor|header is not one"),
        ({"model_args": []}, "no architecture with model_args"),
        ({"model_args__blocks": "many"}, "model_args.blocks is 'many', which has the wrong type"),
        ({"model_args__blocks": [10**9, 2, 2]}, "more blocks than model.safetensors has tensors"),
        ({"model_args__blocks": [10**30]}, "wrong type"),
        ({"model_args__blocks": None}, "model_args lack blocks"),
        ({"model_args__widths": [4, 8, 10**6]}, "describes another network than model.safetensors holds"),
        ({"model_args__width": 3}, "have no 'width'; did you mean 'widths'"),
        ({"model_args__shortcut": {"a": 1}}, "wrong type"),
        ({"id2label": {"0": "one"}}, "has 1 labels, and the network has 10 outputs"),
        ({"id2label": {"a": "b"}}, "does not number its labels"),
        ({"id2label": {str(i): i for i in range(10)}}, "its labels are not texts"),
        ({"preprocessing": [1]}, "its preprocessing is not one of a network"),
        ({"preprocessing__mean": [0.5, 0.5]}, "its preprocessing is not one of a network"),
        ({"preprocessing__std": [0.0]}, "its preprocessing is not one of a network"),
        ({"preprocessing__size": "large"}, "its preprocessing is not one of a network"),
    ],
    ids=str,
)
def test_a_hostile_configuration_is_one_sentence(folder: Path, tmp_path: Path, changes: dict, says: str) -> None:
    hostile = edit(folder, tmp_path / "copy", **changes)
    with pytest.raises(DeepresError, match=says) as refused:
        open_model(hostile)
    assert str(refused.value).startswith(str(hostile)) and "\n" not in str(refused.value)


def test_damaged_folders_are_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, damage, says in (
        (
            "no weights",
            lambda at: (at / "model.safetensors").unlink(),
            "no model.safetensors; download or copy the whole folder",
        ),
        ("no json", lambda at: (at / "config.json").write_text("{"), "cannot be read as JSON"),
        ("a list", lambda at: (at / "config.json").write_text("[]"), "holds a list, not the settings"),
        ("changed", lambda at: flip(at / "model.safetensors"), "its weights were changed after they were written"),
        ("cut", lambda at: cut(at / "model.safetensors"), "not a whole safetensors file"),
    ):
        shutil.copytree(folder, tmp_path / name)
        damage(tmp_path / name)
        assert main(["info", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_labels_may_be_edited_in_the_configuration(folder: Path, tmp_path: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    edited = edit(folder, tmp_path / "copy", id2label={str(i): name for i, name in enumerate(names)})
    assert open_model(edited).classes == tuple(names)


def test_what_cannot_be_pushed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    detector = write_tensors(tmp_path / "detector.safetensors", {"w": torch.zeros(1)}, json.dumps({"detector": {}}))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for model, to, says in (
        (SAVED / "ghost", "out", "holds a ghost, whose gates and exits"),
        (detector, "out", "holds a detector"),
        (nn.Linear(3, 3), "out", "how it is built is not known"),
        ("resnet18", "out", "would be freshly initialised"),
        (SAVED / "run", "taken", "exists already"),
        (tmp_path / "none", "out", "no such file"),
    ):
        with pytest.raises(DeepresError, match=says):
            save_pretrained(model, tmp_path / to)
    assert {path.name for path in tmp_path.iterdir()} == {"taken", detector.name} and (
        tmp_path / "taken" / "file"
    ).read_text() == "mine"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with loopback_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def test_upload_and_download(hub: LoopbackHub, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(SAVED / "run"), "--to", "hf:me/digits", "--private", "--message", "First"]) == 0
    assert f"{hub.address}/me/digits: README.md, config.json" in capsys.readouterr().out
    assert hub.private == {"me/digits"} and hub.commits == ["First"]
    assert set(hub.repositories["me/digits"]) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    model = from_pretrained("me/digits")
    assert same(deepres.load(SAVED / "run"), model, torch.randn(3, 1, 8, 8))
    assert deepres.evaluate("hf:me/digits", "digits").top1 == pytest.approx(29.805, abs=0.001)
    start = deepres.Run(
        "resnet14-cifar", str(small_folder), "digits", init="hf:me/digits", epochs=0.1, speed="exact", size=8, width=0.25
    )
    assert deepres.train(start, show=False).test.n > 0


def test_an_upload_that_fails_is_one_sentence(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for endpoint, says in (
        (hub.address, "give a token with the right to write"),
        ("http://127.0.0.1:9", "or write a folder with --to FOLDER"),
    ):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert main(["push", str(SAVED / "run"), "--to", "hf:me/digits"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and "hf:me/digits: could not be uploaded" in error
    assert hub.repositories == {}
    assert main(["push", str(SAVED / "run"), "--to", "hf:digits"]) == 2
    assert "is not hf:OWNER/NAME" in capsys.readouterr().err
    assert isinstance(HubFolder(Path("x"), "deepres", ()).lines(), list)


def test_the_card_of_a_network_that_classifies_texts(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=11, num_labels=3
    )
    save_pretrained(transformers.BertForSequenceClassification(config).eval(), tmp_path / "out")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert (
        card.data.pipeline_tag == "text-classification" and "A text classifier of" in card.text and "for 3 classes" in card.text
    )
    assert "deepres generate" not in card.text and "deepres predict" not in card.text


def test_a_network_in_half_precision_is_written_too(tmp_path: Path) -> None:
    for name, model in (("ours", deepres.create("resnet8-cifar")), ("timm", timm.create_model("test_resnet", num_classes=3))):
        half = model.to(torch.bfloat16).eval()
        save_pretrained(half, tmp_path / name)
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        assert same(from_pretrained(tmp_path / name).to(torch.bfloat16), half, torch.randn(2, 3, 32, 32, dtype=torch.bfloat16))


def test_options_of_an_upload_are_not_for_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--private"], ["--message", "First"]):
        assert main(["push", str(SAVED / "run"), "--to", str(tmp_path / "me" / "digits"), *options]) == 2
        assert "has no use for --private and --message" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
