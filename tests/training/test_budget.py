"""``--budget`` chooses from measured errors by times measured on this machine, and says where it cannot."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deepres
from deepres import DeepresError, Run
from deepres.cli.main import main
from deepres.data import Data, Prepare, Resident
from deepres.training.budget import ExpectedError, ExpectedErrors, expected_errors, plan_budget

SIDE = 8


def row(net: str, epochs: float, error: float, recipe: str = "fast-cifar") -> ExpectedError:
    return ExpectedError(net, recipe, 0.2, epochs, error, None, 1, "a test")


FAST = row("resnet8-cifar", 1, 30.0)
BETTER = row("resnet8-cifar", 2, 20.0, "muon-cifar")
DEEPER = row("resnet14-cifar", 2, 15.0)
ENDLESS = row("resnet20-cifar", 1e6, 1.0)
TABLE = ExpectedErrors("test images", 64, SIDE, (FAST, BETTER, DEEPER, ENDLESS))


def split(n: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8), torch.arange(n) % 2


@pytest.fixture(scope="module")
def data() -> Data:
    torch.manual_seed(0)
    train, held = Resident(*split(64)), Resident(*split(8))
    return Data("squares", ("a", "b"), train, held, held, Prepare(SIDE, 3, (0.5,) * 3, (0.25,) * 3))


def budgeted(**changes: object) -> Run:
    return Run(**{"net": "auto", "data": "squares", "speed": "float32", "device": "cpu", **changes})  # type: ignore[arg-type]


def test_the_least_error_that_fits_is_chosen_and_can_be_trained(data: Data) -> None:
    plan = plan_budget("5m", budgeted(), data, TABLE)
    assert plan.expected == DEEPER and not plan.is_last
    assert 0 < plan.seconds < 300 and plan.rate > 0
    assert "resnet14-cifar, 2 epochs of fast-cifar to a rate of 0.2" in str(plan) and "15.0 % (one seed) on test images" in str(
        plan
    )
    assert "table ends" not in str(plan) and "another error" not in str(plan)
    result = deepres.train(plan.run, data=plan.data, show=False)
    assert (result.run.net, result.run.epochs, result.run.recipe.lr, result.speed) == ("resnet14-cifar", 2, 0.2, "float32")  # type: ignore[union-attr]


def test_a_network_or_a_recipe_restricts_the_choice(data: Data) -> None:
    plan = plan_budget("5m", budgeted(net="resnet8-cifar"), data, TABLE)
    assert plan.expected == BETTER and plan.is_last
    assert "the table ends here, so for a longer run give --epochs" in str(plan)
    assert plan_budget("5m", budgeted(net="resnet8-cifar", recipe="fast-cifar"), data, TABLE).expected == FAST
    more = dataclasses.replace(TABLE, images=45_000)
    assert "other data, such as squares, will have another error" in str(
        plan_budget("5m", budgeted(recipe="muon-cifar"), data, more)
    )


@pytest.mark.parametrize(
    ("budget", "changes", "says"),
    [
        ("soon", {}, "--budget is a time such as 90s, 20m or 1.5h, not 'soon'"),
        ("1m", {"net": "resnet110-cifar"}, "the table of --budget holds resnet8-cifar, resnet14-cifar, resnet20-cifar"),
        ("1m", {"recipe": "paper-cifar"}, "the table of --budget holds fast-cifar, muon-cifar"),
        ("1m", {"net": "resnet14-cifar", "recipe": "muon-cifar"}, "the table of --budget holds fast-cifar for resnet14-cifar"),
        ("1m", {"epochs": 3, "lr": 0.1, "width": 0.5}, "leave out --epochs, --lr, --width"),
        (
            "1h",
            {"net": "resnet20-cifar"},
            r"the shortest training of the table, 1e\+06 epochs of resnet20-cifar, takes about .* h",
        ),
    ],
)
def test_what_the_table_does_not_hold_is_one_sentence(data: Data, budget: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(DeepresError, match=says):
        plan_budget(budget, budgeted(**changes), data, TABLE)


def test_images_of_another_size_are_refused(data: Data) -> None:
    with pytest.raises(
        DeepresError, match="squares: holds images of 3x8x8, and the table of --budget is for colour images of 32x32"
    ):
        plan_budget("1m", budgeted(), data)


def test_the_table_that_comes_with_deepres_can_be_trained() -> None:
    table = expected_errors()
    assert table.size == 32 and len(table.rows) == len({(one.net, one.recipe, one.lr, one.epochs) for one in table.rows})
    for one in table.rows:
        assert 0 < one.error < 90 and one.n >= 1 and (one.spread is None) == (one.n == 1) and one.origin
        assert Run(one.net, recipe=one.recipe, lr=one.lr, epochs=one.epochs).recipe.lr == one.lr  # type: ignore[union-attr]
    depths = [int(one.net.removeprefix("resnet").removesuffix("-cifar")) for one in table.rows]
    assert depths == sorted(depths)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--budget", "soon"), "--budget is a time"),
        (("--budget", "1m", "--net", "resnet8-cifar"), "--net resnet8-cifar: the table of --budget holds"),
        (("--budget", "1m"), "digits: holds images of"),
        (("--budget", "1m", "--again", "runs/x"), "no such file"),
        (("--budget", "1m", "--epochs", "3"), "leave out --epochs"),
    ],
)
def test_the_command_says_so_too(
    args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("deepres: ") and err.count("\n") == 1 and says in err, err
    assert not list(tmp_path.iterdir())
