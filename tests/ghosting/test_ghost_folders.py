"""The commands that take a network as it is to be used take the ghost in a ghost's folder, not the whole network beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ghost_helpers import CLASSES, ghost, saved
from PIL import Image
from safetensors.torch import save_file

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.ghosting import Settings, ghost_or_reference, load_ghost, open_ghost
from deepres.models import open_with_data


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder, numbers = tmp_path / "pictures", np.random.default_rng(0)
    for i in range(30):
        path = folder / "test" / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        (other := folder / "train" / CLASSES[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(other / f"{i}.png")
    return folder


def test_evaluate_and_predict_take_the_ghost(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(ghost(average=False), tmp_path / "ghost")
    made = open_ghost(folder).model
    data = open_with_data(made, str(pictures)).data
    expected, whole = deepres.evaluate(made, data), deepres.evaluate(made.net, data)
    assert expected.loss != pytest.approx(whole.loss, rel=1e-3)
    assert main(["evaluate", str(folder), "--data", str(pictures), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert main(["predict", str(folder), str(pictures / "test"), "--top", "1", "--format", "json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        for answer in answers:
            x = data.prepare.normalise(data.prepare.image(Image.open(answer["file"]))[None])
            top = made(x).softmax(1).max(1)
            assert answer["classes"][0]["name"] == CLASSES[int(top.indices)]
            assert answer["classes"][0]["probability"] == pytest.approx(float(top.values), abs=1e-4)
    assert ghost_or_reference("resnet20-cifar") == "resnet20-cifar"


def test_commands_that_take_the_whole_network_say_so(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(ghost(average=False), tmp_path / "ghost")
    said = f"{folder}: holds a ghost; its whole network is used, without gates and early exits"
    for command, *options in (
        ("look", "--examples", "6", "--no-ablations"),
        ("shrink", "--target", "blocks=5", "--epochs", "1", "--speed", "float32"),
        ("ghost", "--budget", "1", "--gates", "none", "--examples", "20"),
    ):
        assert main([command, str(folder), "--data", str(pictures), "--out", str(tmp_path / command), *options]) == 0
        assert capsys.readouterr().out.count(said) == 1
    assert main(["evaluate", str(folder), "--data", str(pictures)]) == 0
    assert "holds a ghost" not in "".join(capsys.readouterr())


def test_a_folder_that_is_used_again_keeps_nothing_of_its_first_ghost(tmp_path: Path) -> None:
    made = ghost(average=False, gates=True)
    made.settings = Settings(skip_threshold=0.0, fixed=True)
    assert (saved(made, tmp_path) / "static.safetensors").is_file()
    made.settings = Settings(exit_threshold=0.5)
    assert not (saved(made, tmp_path) / "static.safetensors").exists()


def test_a_ghost_that_cannot_be_written_or_read_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ghost" / "ghost.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(DeepresError, match=r"ghost\.safetensors: could not be written"):
        saved(ghost(average=False), tmp_path / "ghost")
    assert not list((tmp_path / "ghost").glob(".*"))
    folder = saved(ghost(average=False), tmp_path / "other")
    for header in ("{}", '{"settings": {"later": 1}, "most": 2, "ahead": [], "deadline": null}', "[]"):
        save_file({"none": torch.zeros(1)}, folder / "ghost.safetensors", metadata={"ghost": header})
        with pytest.raises(DeepresError, match="holds no readable ghost"):
            load_ghost(folder)
