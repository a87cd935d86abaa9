"""What a run leaves behind where it ends early, and what it must not change: folders, checkpoints, frozen weights, settings of PyTorch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.training import Recipe, Trainer, checkpoint
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness

TINY = Recipe("tiny", epochs=2, batch=64, lr=0.05, schedule="one-cycle", warmup=0.3, augment="pad-crop")
NET = {"net": "resnet8-cifar", "data": "digits", "recipe": TINY, "speed": "exact", "width": 0.5}


def test_a_checkpoint_outlives_damaged_ones_of_later_steps(tmp_path: Path) -> None:
    """A run that resumed before a damaged checkpoint keeps its own new ones, and does not return to the other's steps."""
    state = {"model": {}, "optimizer": {}, "progress": {}}
    (tmp_path / "000000009.pt").write_bytes(b"cut")
    for step in (4, 5):
        assert checkpoint.write(tmp_path, step, state, keep=1).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["000000005.pt"]


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _one_value(*_: object) -> None:
    nn.BatchNorm1d(3)(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("step", "says"),
    [(None, "a training step needs"), (_one_value, "one value per channel"), (_out_of_memory, "out of memory on cpu")],
)
def test_a_run_that_could_not_begin_leaves_its_folder(
    step: Callable[..., None] | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the same command begins once its mistake is mended. The settings of a run that is resumed stay."""
    run = Run(**NET, out=str(tmp_path / "runs" / "x"), memory="1MiB" if step is None else "all")
    if step is not None:
        monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(DeepresError, match=says):
        deepres.train(run, show=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs" / "x").mkdir(parents=True)
    with pytest.raises(DeepresError, match=says):
        deepres.train(run, show=False)
    assert not list((tmp_path / "runs" / "x").iterdir())  # a folder that was there before stays
    (tmp_path / "runs" / "x" / "run.json").write_text(run.to_json())
    with pytest.raises(DeepresError, match=says):
        deepres.train(run, show=False, resume=True)
    assert Run.read(tmp_path / "runs" / "x") == run


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon-sgd"])
@pytest.mark.parametrize("survival", [1.0, 0.5])
def test_frozen_parameters_stay_as_they_are(optimizer: str, survival: float) -> None:
    """Also where gradients are kept from step to step, and after training that left gradients behind."""
    model = deepres.create("resnet8-cifar", in_channels=1, survival=survival)
    frozen = [*model.stem.parameters(), *model.stages[0].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.clone() for parameter in frozen]
    recipe = dataclasses.replace(TINY, epochs=0.1, weight_decay=0.1, optimizer=optimizer)
    deepres.train(Run("resnet8-cifar", "digits", recipe, speed="exact"), show=False, model=model)
    assert all(torch.equal(a, b) for a, b in zip(frozen, before, strict=True))


def test_the_callers_own_choice_of_algorithms_comes_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with exactness(SPEEDS["exact"]):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
