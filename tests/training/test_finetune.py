"""Fine-tuning: which weights it starts from, what learns when and how fast, and that it learns."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.cli.main import main
from deepres.data import open_data
from deepres.training import Trainer
from deepres.training.distribute import DistributedContext
from deepres.training.network import open_run, starting_weights
from deepres.training.norms import train_mode
from deepres.training.optimizer import optimizer_for, set_rate
from deepres.training.recipes import recipe


def test_finetune_starts_from_pretrained_weights_where_there_are_some() -> None:
    assert starting_weights(Run("resnet18", recipe="finetune")) == "pretrained"
    assert starting_weights(Run("timm:resnet18", recipe="finetune")) == "pretrained"
    assert starting_weights(Run("resnet18", recipe="finetune", init="none")) == "none"
    for without in (Run("resnet18"), Run("resnet20-cifar", recipe="finetune"), Run("resnet18", recipe="finetune", width=0.5)):
        assert starting_weights(without) is None


def test_without_a_network_it_says_where_the_file_belongs_and_none_starts_anew(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    command = [
        "train",
        "--net",
        "resnet18",
        "--data",
        str(small_folder),
        "--recipe",
        "finetune",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "resnet18-f37072fd.pth: could not be downloaded" in said and str(tmp_path / "hub" / "checkpoints") in said
    assert not (tmp_path / "run").exists()
    assert main([*command, "--init", "none", "--epochs", "0.1", "--speed", "exact"]) == 0
    assert Run.read(tmp_path / "run").init == "none"


def test_the_last_layer_learns_first_and_rates_fall_towards_the_first_layers() -> None:
    model, chosen = deepres.create("resnet8-cifar"), recipe("finetune")
    optimizer = optimizer_for(model, chosen)
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len([*model.parameters()])
    set_rate(optimizer, 1.0, 0.9)
    found = [rates[id(p)]["lr"] for p in model.parameters()]
    assert found == sorted(found) and found[0] == pytest.approx(0.1) and found[-1] == 1.0
    set_rate(optimizer, 1.0, 0.9, head_only=True)
    assert {name for name, p in model.named_parameters() if rates[id(p)]["lr"]} == {"head.fc.weight", "head.fc.bias"}


def test_all_layers_learn_from_the_first_step_on_where_the_last_is_not_known() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    optimizer = optimizer_for(model, recipe("finetune"))
    set_rate(optimizer, 1.0, 0.9, head_only=True)
    assert all(group["lr"] for group in optimizer.param_groups)


def test_exit_heads_learn_at_the_rate_of_the_last_layer() -> None:
    """Against a step of SGD: neither the first layers' lower rate nor the frozen beginning is theirs."""
    heads = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
    run = Run("resnet8-cifar", "digits", recipe("finetune", lr=0.5), speed="exact", memory="all")
    trainer = Trainer(run, open_data("digits"), DistributedContext(torch.device("cpu")))
    side = trainer.optimizer_for(heads)
    for head_only in (True, False):
        set_rate(trainer.optimizer, 0.5, 0.0, head_only=head_only)
        before = [p.detach().clone() for p in heads.parameters()]
        for p in heads.parameters():
            p.grad = torch.ones_like(p)
        side.step()
        for p, was in zip(heads.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), was - 0.5 * (1 + run.recipe.weight_decay * was))


def test_few_images_get_more_epochs() -> None:
    chosen = recipe("finetune")
    assert chosen.steps(5) == 30 * 5 and chosen.steps(40) == round(20_000 / 64) and chosen.steps(1000) == 3 * 1000
    assert recipe("finetune", epochs=2).steps(5) == 10


def test_frozen_norms_keep_their_statistics() -> None:
    model = deepres.create("resnet8-cifar")
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    train_mode(model, freeze_norms=True)
    model(torch.randn(4, 3, 16, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    assert model.training and not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    train_mode(model)
    assert all(m.training for m in model.modules())


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 classes of 8 training and 8 test windows of 64x64: thirds of two photographs."""
    root, draw = tmp_path_factory.mktemp("few"), random.Random(0)
    for i, pixels in enumerate(load_sample_images().images):
        photograph = Image.fromarray(pixels)
        for third in range(3):
            for split, number in itertools.product(("train", "test"), range(8)):
                side = draw.randint(90, 160)
                left = draw.randint(third * 213, (third + 1) * 213 - side)
                top = draw.randint(0, photograph.height - side)
                folder = root / split / f"part-{i}-{third}"
                folder.mkdir(parents=True, exist_ok=True)
                photograph.resize((64, 64), box=(left, top, left + side, top + side)).save(folder / f"{number}.png")
    return root


def test_pretrained_weights_learn_from_few_images_what_fresh_ones_do_not(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {}
    for init in (None, "none"):
        run = Run(
            "efficientnet-lite0",
            str(few),
            "finetune",
            init=init,
            epochs=6,
            batch=12,
            lr=0.05,
            speed="exact",
            memory="all",
            size=64,
        )
        errors[init] = deepres.train(run).test.top1
    said = capsys.readouterr().err
    assert said.startswith("efficientnet-lite0 from the pretrained weights efficientnet-lite0, recipe")
    assert errors[None] < 55 and errors["none"] > errors[None] + 20, errors


def test_the_weights_own_preparation_comes_along(few: Path) -> None:
    opened = open_run(Run("efficientnet-lite0", str(few), init="pretrained", size=64))
    prepare = opened.data.prepare
    assert prepare.mean == prepare.std == (0.5, 0.5, 0.5) and prepare.interpolation == "bicubic" and prepare.size == 64
    with pytest.raises(DeepresError, match="no pretrained weights known"):
        open_run(Run("resnet20-cifar", str(few), init="pretrained"))
