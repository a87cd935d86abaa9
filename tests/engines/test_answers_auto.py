"""``answers="auto"``: what close calls cost and change on the user's images decides. A clock that calls advance takes the place of time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.engines import ENGINES, Optimized
from deepres.engines.engine import Engine, Precision, Runner
from deepres.engines.source import Source
from deepres.evaluation import timing

SHIFT = 0.02  # what low precision adds to a logit here


class Clock:
    time = 0.0


class Passes(nn.Module):
    """A network whose logits are its inputs; a call takes ``fixed`` seconds and ``each`` for every row."""

    def __init__(self, clock: Clock, fixed: float, each: float) -> None:
        super().__init__()
        self.clock, self.fixed, self.each = clock, fixed, each
        self.weight = nn.Parameter(torch.zeros(1))  # it is on a device

    def __repr__(self) -> str:
        return f"Passes({self.fixed}, {self.each})"

    def forward(self, x: Tensor) -> Tensor:
        self.clock.time += self.fixed + self.each * len(x)
        return x


class Rounded(Runner):
    """Moves the two best logits of each row towards or away from each other, as the row's last value says."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.time += 0.1
        return x + SHIFT * x[:, -1:].sign() * torch.tensor([1.0, -1.0, 0.0, 0.0])


class TickingEngine(Engine):
    name = "ticking"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        return ("bf16",)

    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        return Rounded(self.clock)

    def exact(self, source: Source, runner: Runner) -> nn.Module:
        return Passes(self.clock, 0.0, 0.01)


def photographs(close: int, turned: int) -> Tensor:
    """64 inputs (N, 4), of which ``close`` have two best logits that low precision cannot decide, and turns round in ``turned``."""
    images = torch.tensor([[3.0, 0.0, -5.0, 0.001]]).repeat(64, 1)
    images[:close, 1] = 2.97
    images[:turned, -1] *= -1
    return images


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "now", lambda device: clock.time)
    monkeypatch.setitem(ENGINES, "ticking", TickingEngine(clock))
    return clock


def optimized(clock: Clock, images: Tensor, given: bool = True) -> Optimized:
    return deepres.optimize(
        Passes(clock, 1.0, 0.0), images[:16], images=images if given else None, engine="ticking", measure=True
    )


def test_exact_answers_are_kept_where_they_cost_little(clock: Clock) -> None:
    fast = optimized(clock, photographs(close=1, turned=0))
    assert fast.choice.answers == "exact" and not fast.advice
    exact, close = sorted(fast.candidates[:2], key=lambda one: one.ratio)
    assert (exact.answers, close.answers) == ("exact", "close") and exact.close == pytest.approx(1 / 64)
    assert 0.1 / (16 / exact.rate) == pytest.approx(0.1 / (0.1 + 0.01 / 4))  # a close call in every fourth batch


def test_close_answers_are_taken_where_exact_ones_cost_much_and_nothing_changes(clock: Clock) -> None:
    fast = optimized(clock, photographs(close=64, turned=0))
    assert fast.choice.answers == "close" and fast.exact is None
    assert fast.advice.startswith("exact answers would cost 62% of the speed, and close ones change 0 of 64 answers")


def test_exact_answers_are_kept_at_any_cost_where_answers_change(clock: Clock) -> None:
    fast = optimized(clock, photographs(close=64, turned=3))
    assert fast.choice.answers == "exact" and fast.exact is not None
    assert "exact answers cost 62% of the speed: ticking bf16" in fast.advice and "changes 3 of 64 answers" in fast.advice


def test_an_example_alone_is_not_taken_for_the_users_images(clock: Clock) -> None:
    assert optimized(clock, photographs(close=64, turned=0)[:16], given=False).choice.answers == "exact"


def test_the_command_chooses_by_images_of_the_data_and_not_by_noise(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = tmp_path / "net.safetensors"
    deepres.models.save(
        deepres.create("resnet8-cifar", width=0.25, num_classes=3), net, classes=["digit-0", "digit-1", "digit-2"]
    )
    asked: list[tuple[object, object]] = []
    original = deepres.engines.choosing.optimize

    def optimize(model: nn.Module, example: Tensor, **options: object) -> Optimized:
        asked.append((options["answers"], options["data"]))
        return original(model, example, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(deepres.engines, "optimize", optimize, raising=False)
    common = ["optimize", str(net), "--engine", "torch-eager", "--precision", "float32", "--batch", "4", "--size", "16"]
    assert main([*common, "--data", str(small_folder)]) == 0
    assert main(common) == 0
    assert [answers for answers, _ in asked] == ["auto", "exact"] and asked[0][1] is not None and asked[1][1] is None
    assert "exact or close is not chosen by it" in capsys.readouterr().out
    for option, value, says in (
        ("--batch", "0", "--batch is at least 1"),
        ("--seconds", "nan", "--seconds and --error at least 0, not 4, nan and 0.3"),
        ("--error", "nan", "--error at least 0, not 4, 60 and nan"),
        ("--out", str(net), "net.safetensors: is a file; name a folder"),
        ("--precision", "fp16", "precision fp16: not computed by torch-eager on this machine"),
        ("--engine", "opnvino", "did you mean 'openvino'"),
    ):
        assert main([*common, option, value]) == 2 and says in capsys.readouterr().err, option


def test_a_folder_that_cannot_be_written_is_one_sentence(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DeepresError, match=r"fast: cannot be written \(Not a directory\); name another folder"):
        optimized(clock, photographs(close=1, turned=0)).save(tmp_path / "taken" / "fast")
