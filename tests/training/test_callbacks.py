"""Callbacks: the order of their events, their states in checkpoints, a network that changes, an exception."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Stop, same_weights

import deepres
from deepres import Callback, DeepresError, Run
from deepres.adapters import delete_blocks
from deepres.data import open_data
from deepres.training import Interrupted, Recipe, Result, Trainer, read_log

TINY = Recipe("tiny", epochs=2, batch=256, lr=0.05, schedule="one-cycle", warmup=0.3, augment="none")
NET = {"net": "resnet14-cifar", "data": "digits", "recipe": TINY, "speed": "exact", "width": 0.25, "memory": "all"}
STEPS = 6  # an epoch


class Log(Callback):
    """Writes down each event."""

    def __init__(self, name: str, events: list[tuple[str, str]]) -> None:
        self._name, self.events = name, events

    @property
    def name(self) -> str:
        return self._name

    def _add(self, event: str) -> None:
        self.events.append((self.name, event))

    def run_begins(self, trainer: Trainer) -> None:
        self._add("run_begins")

    def before_step(self, trainer: Trainer, batch: Any) -> None:
        torch.rand(3)  # must not disturb the run
        self._add(f"before_step {trainer.progress.done}")

    def loss(self, trainer: Trainer, loss: Any, logits: Any, images: Any, labels: Any) -> torch.Tensor:
        assert logits.shape == (len(labels), 10) and len(images) == len(labels) and loss.requires_grad
        self._add("loss")
        return loss

    def after_step(self, trainer: Trainer, batch: Any) -> None:
        self._add(f"after_step {trainer.progress.done}")

    def after_epoch(self, trainer: Trainer, record: Any) -> None:
        self._add(f"after_epoch {record.epoch}")

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        self._add("run_ends" if result is not None else "run_ends early")


class Count(Callback):
    """Counts images; adds a term to the loss that depends on the count, so that its state decides the weights."""

    def __init__(self, name: str, factor: float) -> None:
        self._name, self.factor, self.seen = name, factor, 0

    @property
    def name(self) -> str:
        return self._name

    def loss(self, trainer: Trainer, loss: Any, logits: Any, images: Any, labels: Any) -> torch.Tensor:
        return loss + self.factor * self.seen * logits.square().mean()

    def after_step(self, trainer: Trainer, batch: Any) -> None:
        self.seen += batch.total

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Shorten(Callback):
    """Takes one block out, in place or as a new network, after step ``step``."""

    changes_network = True

    def __init__(self, step: int, path: str = "stages.1.blocks.1", new: bool = False) -> None:
        self.step, self.path, self.new, self.gone = step, path, new, False

    def _cut(self, trainer: Trainer) -> None:
        delete_blocks(trainer.model, [self.path])
        if self.new:
            fresh = type(trainer.model)(trainer.model.config)
            fresh.load_state_dict(trainer.model.state_dict())
            trainer.replace_model(fresh)
        else:
            trainer.replace_model()
        self.gone = True

    def after_step(self, trainer: Trainer, batch: Any) -> None:
        if trainer.progress.done == self.step:
            self._cut(trainer)

    def state(self) -> dict[str, Any]:
        return {"gone": self.gone}

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        if state["gone"]:
            self._cut(trainer)


def test_events_come_in_the_documented_order_and_disturb_nothing(tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []
    run = Run(**NET, out=str(tmp_path / "logged"))
    deepres.train(run, show=False, callbacks=[Log("a", events), Log("b", events)])
    expected = ["run_begins"]
    for step in range(2 * STEPS):
        expected += [f"before_step {step}", "loss", f"after_step {step + 1}"]
        if (step + 1) % STEPS == 0:
            expected.append(f"after_epoch {(step + 1) // STEPS}")
    both = [(name, event) for event in expected for name in "ab"]
    assert events == [*both, ("b", "run_ends"), ("a", "run_ends")]
    deepres.train(Run(**NET, out=str(tmp_path / "alone")), show=False)
    assert same_weights(tmp_path / "logged", tmp_path / "alone")


@pytest.mark.parametrize("step", [4, STEPS])
def test_each_callback_gets_its_own_state_back(step: int, tmp_path: Path) -> None:
    whole, halted = (Run(**NET, out=str(tmp_path / name)) for name in ("whole", "halted"))
    deepres.train(whole, show=False, callbacks=[Count("one", 1e-5), Count("other", 1e-4)])
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Count("one", 1e-5), Stop(step), Count("other", 1e-4)])
    counts = [Count("other", 1e-4), Count("one", 1e-5)]  # by name, not by place
    deepres.train(halted, resume=True, show=False, callbacks=counts)
    assert same_weights(tmp_path / "whole", tmp_path / "halted")
    assert counts[0].seen == counts[1].seen == 2 * len(open_data("digits").train)


def test_states_have_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="two callbacks keep their state under the name 'one'"):
        deepres.train(Run(**NET), show=False, callbacks=[Count("one", 0.0), Count("one", 0.0)])
    halted = Run(**NET, out=str(tmp_path / "halted"))
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Count("one", 0.0), Stop(2)])
    with pytest.warns(UserWarning, match="states of callbacks that are not given: one"):
        deepres.train(halted, resume=True, show=False)


@pytest.mark.parametrize("new", [False, True])
def test_a_callback_may_change_the_network(new: bool, tmp_path: Path) -> None:
    whole, halted = (Run(**NET, out=str(tmp_path / name)) for name in ("whole", "halted"))
    result = deepres.train(whole, show=False, callbacks=[Shorten(3, new=new), Count("count", 1e-5)])
    assert result.model.config.blocks == (2, 1, 2)
    assert deepres.load(tmp_path / "whole").config.blocks == (2, 1, 2)
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Shorten(3, new=new), Count("count", 1e-5), Stop(5)])
    deepres.train(halted, resume=True, show=False, callbacks=[Shorten(3, new=new), Count("count", 1e-5)])
    assert same_weights(tmp_path / "whole", tmp_path / "halted")


def test_a_network_changed_after_the_last_validation_is_measured_anew(tmp_path: Path) -> None:
    class Last(Shorten):
        def after_epoch(self, trainer: Trainer, record: Any) -> None:
            if record.epoch == 2:
                self._cut(trainer)

    for out in (str(tmp_path / "run"), None):
        result = deepres.train(Run(**NET, out=out), show=False, callbacks=[Last(-1)])
        data = deepres.data.open_data("digits")
        measured = deepres.evaluation.measure(result.model, data.val, data.prepare, data.classes)
        assert result.model.config.blocks == (2, 1, 2) and result.val_error == measured.top1


def test_an_exception_ends_the_run_and_every_callback(tmp_path: Path) -> None:
    class Broken(Callback):
        def after_step(self, trainer: Trainer, batch: Any) -> None:
            if trainer.progress.done == 3:
                raise ZeroDivisionError("broken")

    class Never(Callback):
        def run_begins(self, trainer: Trainer) -> None:
            raise ZeroDivisionError("at once")

        def run_ends(self, trainer: Trainer, result: Any) -> None:
            raise AssertionError("did not begin")

    events: list[tuple[str, str]] = []
    with pytest.raises(ZeroDivisionError, match="broken"):
        deepres.train(Run(**NET), show=False, callbacks=[Log("a", events), Broken(), Log("b", events)])
    assert events[-3:] == [("a", "after_step 3"), ("b", "run_ends early"), ("a", "run_ends early")]
    events.clear()
    with pytest.raises(ZeroDivisionError, match="at once"):
        deepres.train(Run(**NET), show=False, callbacks=[Log("a", events), Never(), Log("b", events)])
    assert events == [("a", "run_begins"), ("a", "run_ends early")]


def test_arguments_of_earlier_versions_still_work(tmp_path: Path) -> None:
    epochs: list[int] = []
    steps: list[tuple[int, int]] = []
    run = Run(**NET, out=str(tmp_path / "old"))
    with pytest.warns(DeprecationWarning, match="give callbacks="):
        deepres.train(
            run,
            show=False,
            watch=lambda model, record: epochs.append(record.epoch),
            tap=lambda model, images, labels, optimizer, step, an_epoch: steps.append((step, an_epoch)),
        )
    assert epochs == [1, 2] and steps == [(step, STEPS) for step in range(2 * STEPS)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'wach'"):
        deepres.train(run, wach=print)


def test_a_checkpoint_with_a_curriculum_of_before_is_restored(tmp_path: Path) -> None:
    whole, halted = (Run(**NET, out=str(tmp_path / name)) for name in ("whole", "halted"))
    deepres.train(whole, show=False, callbacks=[Count("count", 1e-5)])
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Count("count", 1e-5), Stop(4)])
    (file,) = (tmp_path / "halted" / "checkpoints").iterdir()
    state = torch.load(file, weights_only=True)
    state["curriculum"] = state.pop("callbacks")["count"]
    del state["data"]
    torch.save(state, file)
    deepres.train(halted, resume=True, show=False, callbacks=[Count("count", 1e-5)])
    assert same_weights(tmp_path / "whole", tmp_path / "halted")


def test_a_run_stopped_in_its_last_step_is_still_validated(tmp_path: Path) -> None:
    whole, halted = (Run(**NET, out=str(tmp_path / name)) for name in ("whole", "halted"))
    expected = deepres.train(whole, show=False)
    with pytest.raises(Interrupted):
        deepres.train(halted, show=False, callbacks=[Stop(2 * STEPS)])
    found = deepres.train(halted, resume=True, show=False)
    assert [line["epoch"] for line in read_log(tmp_path / "halted")] == [1, 2]
    assert (found.val_error, found.test) == (expected.val_error, expected.test)


def test_without_a_folder_the_best_weights_are_returned_too() -> None:
    class Ruin(Callback):
        """Makes the last epoch worse than the one before."""

        def after_step(self, trainer: Trainer, batch: Any) -> None:
            if trainer.progress.done == 12 * STEPS:
                with torch.no_grad():
                    trainer.model.head.fc.weight.neg_()

    data = deepres.data.open_data("digits")
    result = deepres.train(Run(**NET, epochs=12), show=False, data=data, callbacks=[Ruin()])
    assert result.best_epoch < 12 and result.val_error < result.history[-1].val_error
    assert deepres.evaluation.measure(result.model, data.val, data.prepare, data.classes).top1 == result.val_error
