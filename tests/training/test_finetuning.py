"""Fine-tuning prepares images as the network was trained, and keeps the outputs whose labels the data have."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import deepres
from deepres.data import open_data
from deepres.errors import DeepresError
from deepres.models import adapt_head, notes, open_model
from deepres.training import Run
from deepres.training.network import open_run

COLOURS = {"blue": (0, 0, 220), "green": (0, 220, 0), "red": (220, 0, 0)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy images of 16 x 16 pixels."""
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            pixels = np.clip(random.normal(colour, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def saved(folder: Path, labels: list[str]) -> str:
    """A Hugging Face network with labels and a preprocessing of its own."""
    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    config = ResNetConfig(**shape, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    ResNetForImageClassification(config).save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


def test_preparation_is_the_networks_and_is_saved(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = saved(tmp_path / "net", ["red", "green", "blue"])
    run = Run(net, str(colours), "finetune", out=str(tmp_path / "out"), epochs=1, batch=16, speed="float32")
    result = deepres.train(run)
    prepare = notes(tmp_path / "out")["prepare"]
    assert (prepare["mean"], prepare["std"], prepare["interpolation"]) == ([0.5] * 3, [0.25] * 3, "bicubic")
    said = capsys.readouterr().err.replace("\n", " ")
    assert "3 of its 3 outputs are kept, matched by name" in said
    assert "bicubic, mean 0.5 0.5 0.5, deviation 0.25 0.25 0.25" in said
    # what train returns can be used by itself, with the data's classes and the network's preparation
    file = next((colours / "red").iterdir())
    own = next(iter(deepres.predict(result.model, [file], top=3)))
    by_hand = (torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    probabilities = result.model(by_hand).logits.softmax(1)[0].detach()
    expected = {name: float(p) for name, p in zip(("blue", "green", "red"), probabilities, strict=True)}
    assert dict(zip(own.names, own.probabilities, strict=True)) == pytest.approx(expected, abs=1e-5)
    assert deepres.evaluate(result.model, str(colours)).top1 == pytest.approx(result.test.top1)


@pytest.mark.parametrize(
    ("labels", "rows", "says"),
    [
        (["blue", "green", "red"], [0, 1, 2], ""),
        (["red", "green", "blue"], [2, 1, 0], "3 of its 3 outputs are kept"),
        (["cyan", "red", "Blue", "GREEN", "pink"], [2, 3, 1], "3 of its 5 outputs are kept"),
        (["red", "green", "pink"], None, "its head starts afresh with 3 outputs, since the network has no label 'blue'"),
        (["cat", "dog", "cow"], None, "its head starts afresh"),
    ],
)
def test_outputs_follow_the_datas_classes(
    labels: list[str], rows: list[int] | None, says: str, colours: Path, tmp_path: Path
) -> None:
    net = saved(tmp_path / "net", labels)
    before = open_model(net).model.classifier[1]
    opened = open_run(Run(net, str(colours), size=16))
    after = opened.model.classifier[1]
    assert opened.data.classes == tuple(COLOURS) and after.out_features == opened.model.config.num_labels == 3
    said = " ".join(opened.remarks)
    assert says in said and ("its head" in said or "outputs" in said.replace(str(tmp_path), "")) == bool(says)
    if rows is None:
        assert not any(torch.equal(row, old) for row in after.weight for old in before.weight)
    else:
        assert torch.equal(after.weight, before.weight[rows]) and torch.equal(after.bias, before.bias[rows])
    again = open_run(Run(net, str(colours), size=16)).model.classifier[1]
    assert torch.equal(after.weight, again.weight)  # a fresh head comes from the seed


def test_a_head_without_labels_is_kept_if_it_has_as_many_outputs() -> None:
    model = deepres.create("resnet8-cifar", num_classes=3, width=0.25)
    opened = dataclasses.replace(open_model(model), classes=None)
    weight = model.head[-1].weight if isinstance(model.head, nn.Sequential) else model.head.weight
    kept = adapt_head(opened, ("a", "b", "c"))
    assert torch.equal(weight, next(p for n, p in kept.model.named_parameters() if n.startswith("head") and p.ndim == 2))
    assert "labels are not known" in kept.remarks[-1] and kept.classes == ("a", "b", "c")


def test_weights_of_a_run_bring_their_preparation_and_their_size(colours: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    deepres.train(Run("resnet8-cifar", str(colours), "digits", str(first), epochs=1, size=12, width=0.25), show=False)
    opened = open_run(Run("resnet8-cifar", str(colours), init=str(first), width=0.25))
    assert opened.data.prepare.to_notes() == {**notes(first)["prepare"], "mean": tuple(notes(first)["prepare"]["mean"]),
                                              "std": tuple(notes(first)["prepare"]["std"])}  # fmt: skip
    assert opened.data.prepare.size == opened.data.train.pixels.shape[-1] == 12
    assert open_run(Run("resnet8-cifar", str(colours), init=str(first), width=0.25, size=16)).data.prepare.size == 16


def test_a_fresh_network_takes_the_datas_own_statistics(colours: Path) -> None:
    data = open_data(colours)
    assert open_run(Run("resnet8-cifar", str(colours))).data.prepare == data.prepare
    assert open_run(Run("resnet8-cifar", "somewhere"), data).data is not None


def test_data_without_training_examples_are_refused(colours: Path, tmp_path: Path) -> None:
    for name in COLOURS:
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        (tmp_path / "data" / "test" / name / "0.png").write_bytes((colours / name / "0.png").read_bytes())
    (tmp_path / "data" / "train").mkdir()
    out = tmp_path / "out"
    with pytest.raises(DeepresError, match="train"):
        deepres.train(Run("resnet8-cifar", str(tmp_path / "data"), out=str(out)), show=False)
    data = open_data(colours)
    empty = dataclasses.replace(data, train=data.train.take(torch.arange(0)))
    with pytest.raises(DeepresError, match="training"):
        deepres.train(Run("resnet8-cifar", "colours", out=str(out)), data=empty, show=False)
    assert not out.exists()
