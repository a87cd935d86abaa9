"""What a folder of Hugging Face or timm says of its images, labels and weights is used, and what it cannot mean is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

import deepres
from deepres import DeepresError, Run
from deepres.adapters import ModelSpec
from deepres.cli.main import main
from deepres.data import Prepare
from deepres.models import from_others, load_weights, match_labels, open_model
from deepres.models.opening import library_prepare
from deepres.training import Recipe, train

HALF, PLAIN = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)
USUAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32}


@pytest.fixture(scope="module")
def vit() -> transformers.ViTForImageClassification:
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=16, num_labels=3)
    return transformers.ViTForImageClassification(config).eval()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (USUAL, HALF),
        ({**USUAL, "rescale_factor": 0.00392156862745098}, HALF),
        ({**USUAL, "do_normalize": False}, PLAIN),
        ({**USUAL, "do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True}, HALF),
        ({**USUAL, "rescale_factor": 1 / 127.5}, ((0.25,) * 3, (0.25,) * 3)),
        ({**USUAL, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, HALF),
        ({**USUAL, "image_mean": [0.5], "image_std": 0.5}, HALF),
        ({**USUAL, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, PLAIN),
    ],
)
def test_mean_and_deviation_with_scale_and_offset(settings: dict[str, Any], wanted: tuple[tuple[float, ...], ...]) -> None:
    spec = ModelSpec(channels=3).with_processor(settings)
    assert spec.mean is not None and spec.std is not None
    mean, std = (values * 3 if len(values) == 1 else values for values in (spec.mean, spec.std))
    assert mean == pytest.approx(wanted[0]) and std == pytest.approx(wanted[1])


@pytest.mark.parametrize("settings", [[1, 2], {**USUAL, "image_std": [0, 1, 1]}, {**USUAL, "rescale_factor": 0}])
def test_settings_that_mean_nothing_name_their_file(settings: Any, vit: torch.nn.Module, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DeepresError, match=r"preprocessor_config.json: not the preprocessing of a Hugging Face model \("):
        open_model(f"hf:{tmp_path}")


def test_processors_and_their_crops_in_either_file(vit: torch.nn.Module, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    inner = {**USUAL, "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**inner, "do_flip_channel_order": True}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**USUAL, "image_mean": [0.1] * 3}))
    opened = open_model(f"hf:{tmp_path}")
    prepare = opened.preparation()
    assert (prepare.mean, prepare.size, prepare.resize) == (HALF[0], 32, 36)
    assert any("blue before red" in remark for remark in opened.remarks)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Other"}))
    assert open_model(f"hf:{tmp_path}").preparation().mean == (0.1,) * 3


def test_labels_of_another_number_than_the_weights_are_named(vit: torch.nn.Module, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "id2label": {str(i): "abcd"[i] for i in range(4)}}))
    with pytest.raises(DeepresError, match=r"config\.json describes other sizes than the weights have; it names 4 labels"):
        open_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("shards", [True, False])
def test_weights_under_the_names_of_transformers_files(vit: torch.nn.Module, shards: bool, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path, max_shard_size="3KB" if shards else "1GB")
    name = "model.safetensors.index.json" if shards else "model.safetensors"
    state = open_model(f"hf:{tmp_path}", weights=tmp_path / name).model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())


def test_a_folder_of_timm_with_a_pickle_alone(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=False, model_config={"label_names": ["x", "y", "z"]})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= {"mean": [0.5], "std": [0.25]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    opened = open_model(f"hf:{tmp_path}")
    assert opened.classes == ("x", "y", "z") and opened.preparation().std == (0.25,) * 3
    assert torch.equal(opened.model.get_classifier().weight, model.get_classifier().weight)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["001.Black_footed_Albatross", "002.Laysan"], ["Laysan", "Black footed Albatross"]),
        (["cat", "dog"], ["01_dog", "02_cat"]),
        (["n01443537 goldfish", "n01440764 tench"], ["n01440764", "n01443537"]),
        (["\u00c4pfel", "b"], ["b", "A\u0308pfel"]),  # composed, and as macOS writes names of folders
    ],
)
def test_labels_with_numbers_in_front_match_by_name(labels: list[str], classes: list[str]) -> None:
    found = match_labels(labels, 2, classes)
    assert (found.by, found.order) == ("name", (1, 0))
    assert match_labels(["1_a", "2_b"], 2, ["3_c", "4_d"]).by == "position"


@pytest.mark.parametrize("nested", [True, False])
def test_the_state_of_an_optimizer_is_no_network(nested: bool, tmp_path: Path) -> None:
    state = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1).state_dict()
    torch.save({"optimizer": state, "epoch": 3} if nested else state, tmp_path / "last.pt")
    with pytest.raises(DeepresError, match=r"last\.pt: .*holds the state of an optimizer and no network's weights"):
        open_model("resnet8-cifar", weights=tmp_path / "last.pt")


def test_a_link_to_nowhere_is_no_folder_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    run = Run("resnet8-cifar", "digits", Recipe("x", epochs=1, augment="none"), str(tmp_path / "out"))
    with pytest.raises(
        DeepresError, match=r"it is a link to .*gone, which does not exist; make that folder.*choose another --out"
    ):
        train(run, show=False)
    assert main(["look", "resnet8-cifar", "--data", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "gone, which does not exist; make that folder" in capsys.readouterr().err


def test_both_sides_are_resized_alike_where_the_network_was_trained_so(vit: torch.nn.Module, tmp_path: Path) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8))
    spec = ModelSpec(channels=3).with_processor({**USUAL, "size": {"height": 32, "width": 32}, "resample": 3})
    ours = library_prepare(spec, 32)
    assert np.array_equal(
        ours.image(wide).permute(1, 2, 0).numpy(), np.asarray(wide.resize((32, 32), Image.Resampling.BICUBIC))
    )
    assert not library_prepare(ModelSpec(channels=3).with_processor({**USUAL, "size": {"shortest_edge": 32}}), 32).squash
    assert Prepare.from_notes(json.loads(json.dumps(ours.to_notes()))) == ours
    told = {"input_size": (3, 32, 32), "crop_pct": 0.8, "crop_mode": "squash", "interpolation": "bicubic"}
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=told)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(wide)
    prepare = open_model(model).preparation()
    assert (prepare.size, prepare.resize) == (32, 40)
    found = prepare.normalise(prepare.image(wide)[None])[0]
    assert (found - theirs).abs().max() < 0.03  # one of 255 levels: theirs is rounded between resizing and cropping


def test_weights_without_values_are_refused_and_their_names_translated() -> None:
    with torch.device("meta"):
        state = deepres.create("resnet8-cifar").state_dict()
    assert from_others(state).keys() == state.keys()
    with pytest.raises(DeepresError, match="has a shape and no values"):
        load_weights(deepres.create("resnet8-cifar"), state)
