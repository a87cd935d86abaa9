"""Each experiment goes through all its lines at a tiny scale; what they stand on is right."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.options import parse_seconds
from deepres.paper.experiments import EXPERIMENTS, experiment
from deepres.paper.lab import ExperimentScale, Lab, Outcome, Row, scale
from deepres.paper.page import claim_table, paper_page
from deepres.training import recipe

TINY = ExperimentScale(
    "tiny", "digits", (8, 14), (8, 14), recipe("digits", epochs=1), 2, "nearly everything", deepest=(8, 14), layers=(1, 2, 2)
)


@pytest.fixture(scope="module")
def lab(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    photographs = dataclasses.replace(
        TINY, data=str(small_folder), depths=(18, 34), table=(50,), kind="imagenet", width=0.05, scales=(32, 40)
    )
    return Lab(dataclasses.replace(TINY, beside=photographs), tmp_path_factory.mktemp("paper"))


# what is exact at any scale: the constructed solution has the shallow network's error and its outputs; the gradient agrees with a
# finite difference
EXACT: dict[str, Callable[[Sequence[Row]], bool]] = {
    "constructed": lambda rows: rows[0].ours == rows[1].ours and max(rows[3].ours) < 1e-5,
    "superhighway": lambda rows: max(rows[1].ours) < 1e-5,
}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_each_experiment_goes_through_all_its_lines(name: str, lab: Lab) -> None:
    outcome = experiment(name).run(lab)
    assert outcome.name == name and outcome.claim and outcome.why
    assert outcome.rows and all(row.label and len(row.ours) in (1, lab.scale.seeds) for row in outcome.rows)
    json.dumps(dataclasses.asdict(outcome))
    assert len(claim_table(outcome).rows) == len(outcome.rows)
    assert EXACT.get(name, bool)(outcome.rows)


def test_networks_are_trained_once(lab: Lab) -> None:
    first = lab.train("resnet8-cifar", 0)
    seen: list[str] = []
    again = Lab(lab.scale, lab.out, progress=lambda name, record: seen.append(name)).train("resnet8-cifar", 0)
    assert not seen and again.test_error == first.test_error and again.history == first.history
    other = Lab(lab.scale.changed(epochs=2), lab.out)
    with pytest.raises(DeepresError, match="trained with other settings or on other data; choose another --out"):
        other.train("resnet8-cifar", 0)
    with pytest.raises(DeepresError, match="trained with other settings or on other data; choose another --out"):
        Lab(lab.scale, lab.out, _data=dataclasses.replace(lab.data, name="letters")).train("resnet8-cifar", 0)


@pytest.mark.parametrize(
    ("net", "blocks", "options"),
    [
        ("resnet20-cifar", (4, 5, 3), {}),
        ("resnet29-cifar-bottleneck", (3, 4, 5), {}),
        ("resnet20-cifar-preact", (6, 4, 3), {}),
        ("plain20-cifar", (4, 5, 6), {}),
        ("plain20-cifar", (4, 5, 6), {"norm": False}),
    ],
)
def test_deepening_leaves_the_outputs(net: str, blocks: tuple[int, ...], options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = deepres.create(net, **options)
    x = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)  # running statistics that are not 0 and 1
        model.eval()
        deeper = deepres.deepen(model, blocks, x)
        assert deeper.config.blocks == blocks and not deeper.training
        expected = model(x)
        torch.testing.assert_close(deeper(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        if net.startswith("resnet"):  # a plain network's norms fit the signal in eval mode
            torch.testing.assert_close(deeper.train()(x), model.train()(x), rtol=1e-4, atol=1e-4)
    deepres.deepen(model, blocks)(x).sum().backward()


def test_what_cannot_be_deepened() -> None:
    with pytest.raises(DeepresError, match="only adds blocks"):
        deepres.deepen(deepres.create("resnet20-cifar"), (2, 3, 3))
    for net in ("plain29-cifar-bottleneck", "plain20-cifar-preact"):
        model = deepres.create(net)
        with pytest.raises(DeepresError, match="basic blocks"):
            deepres.deepen(model, tuple(n + 1 for n in model.config.blocks))


def test_networks_without_norm_have_biases() -> None:
    for net in ("plain20-cifar", "resnet20-cifar-b", "resnet29-cifar-preact-bottleneck", "resnet18"):
        model = deepres.create(net, norm=False, num_classes=10)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert model.stem.conv.bias is not None
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    small = deepres.create("plain20-cifar", init="gaussian")
    assert 0.009 < float(small.stages[2].blocks[1].branch.conv1.weight.detach().std()) < 0.011
    with pytest.raises(DeepresError, match="unknown init"):
        deepres.create("resnet20-cifar", init="xavier")


def test_rows_and_budgets() -> None:
    assert Row("x", (1.0, 3.0)).text() == "2.00 ± 1.4 %" and Row("x", (0.5,), "nats").text() == "0.50 nats"
    assert (parse_seconds("90s"), parse_seconds("20m"), parse_seconds("1.5h")) == (90, 1200, 5400)
    for wrong in ("soon", "0m", "20"):
        with pytest.raises(DeepresError, match="--budget is a time"):
            parse_seconds(wrong)
    with pytest.raises(DeepresError, match="unknown scale"):
        scale("huge")
    with pytest.raises(DeepresError, match="did you mean 'degradation'"):
        experiment("degradaton")


def test_the_page_says_what_did_not_hold(tmp_path: Path) -> None:
    shared = {"name": "n", "source": "s", "claim": "c", "rows": (Row("r", (1.0,)),), "figures": (), "differs": "d", "seeds": 1}
    outcomes = [Outcome(title=t, holds=h, why="w", **shared) for t, h in (("yes", True), ("no", False))]
    html = paper_page(outcomes, "f").write(tmp_path / "page.html").read_text()
    assert "1 of 2 claims hold here" in html and "does not hold here" in html


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    out = tmp_path / "paper"
    few = ["--seeds", "1", "--epochs", "0.1", "--out", str(out)]
    assert main(["paper", "bottleneck", *few]) == 0
    said = capsys.readouterr().out
    assert "Differences from the paper: " in said and "The claim" in said
    assert (out / "report.html").exists() and len(json.loads((out / "outcomes.json").read_text())) == 1
    assert main(["paper", "all", *few, "--budget", "0.01s"]) == 1
    assert "Did not fit the budget" in capsys.readouterr().out
    for wrong, hint in ((["all", "--scale", "big"], "unknown scale"),
                        (["all", "--seeds", "0"], "--seeds must be above 0"), (["all", "--data", "x"], "unknown data")):  # fmt: skip
        assert main(["paper", *wrong]) == 2
        assert hint in capsys.readouterr().err


def test_scales_serve_what_they_can(tmp_path: Path) -> None:
    quick, cifar, imagenet = (scale(name) for name in ("quick", "cifar", "imagenet"))
    assert quick.serving("imagenet") is not None and cifar.serving("imagenet") is None and imagenet.serving("cifar") is None
    with pytest.raises(DeepresError, match="cannot run at the scale 'cifar'; it runs at quick and imagenet"):
        experiment("imagenet-depth").run(Lab(cifar, tmp_path))
    with pytest.raises(DeepresError, match="needs --data FOLDER"):
        experiment("imagenet-depth").run(Lab(imagenet, tmp_path))
    changed = quick.changed(epochs=2, seeds=1)
    assert changed.beside is not None and changed.beside.recipe.epochs == 2 and "2 epochs" in changed.differs


def test_the_imagenet_path_on_photographs_in_folders(large_folder: Path, tmp_path: Path) -> None:
    """The real scale's own lines, streamed from files, by every protocol: only smaller, and one epoch."""
    small = dataclasses.replace(
        scale("imagenet").changed(data=str(large_folder), epochs=1), depths=(18, 34), table=(50,), size=64, width=0.05, scales=(64, 80)
    )  # fmt: skip
    small = dataclasses.replace(small, recipe=dataclasses.replace(small.recipe, batch=8))
    lab = Lab(small, tmp_path, "float32")
    outcome = experiment("imagenet-ensemble").run(lab)
    assert "3 networks together" in outcome.why
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "tests").iterdir()) == ["multiscale"] * 4
    again = experiment("imagenet-ensemble").run(Lab(small, tmp_path, "float32"))  # nothing is trained or tested again
    assert again.rows == outcome.rows
