"""Exits that learn with the network: its signal can be read earlier, the gradient is the loss's, and a run resumes to the bit."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import deepres
from deepres import DeepresError, Run
from deepres.data import open_data
from deepres.ghost import Ghost
from deepres.ghost.fit import batches, fit
from deepres.nn import read
from deepres.sites import chunks, find_units, pooled_by_quarter
from deepres.train import Interrupted, Recipe, Trainer
from deepres.train.distribute import Team
from deepres.train.exits import Exits

HOW = Recipe("tiny", epochs=4, batch=64, lr=0.05, schedule="one-cycle", warmup=0.3, augment="none", exits=0.5)
NET = {"net": "resnet20-cifar", "data": "digits", "recipe": HOW, "speed": "exact", "width": 0.5, "memory": "all"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> deepres.train.Result:
    return deepres.train(Run(**NET, out=str(tmp_path_factory.mktemp("exits") / "run")), show=False)


def first_exit_right(model: torch.nn.Module) -> float:
    """Share of test digits that an exit behind the first chunk, fitted to the frozen network, gets right."""
    data = open_data("digits")
    made = Ghost(model)
    fit(made, data, gates=False, examples=250)
    given = list(batches(data, "test", 400, CPU))
    seen = [made.record(x, deepres.ghost.Settings())[2][0] for x, _ in given]
    return float((torch.cat([answer[0] for answer in seen]).argmax(1) == torch.cat([y for _, y in given])).float().mean())


def test_the_signal_can_be_read_earlier(trained: deepres.train.Result) -> None:
    usual = deepres.train(Run(**NET, exits=0.0), show=False)
    assert usual.test.top1 < 15 and trained.test.top1 < 15
    assert first_exit_right(trained.model) > first_exit_right(usual.model) + 0.05


def test_what_is_left_is_the_plain_network(trained: deepres.train.Result) -> None:
    plain = deepres.create("resnet20-cifar", width=0.5, in_channels=1)
    assert trained.model.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks for module in trained.model.modules())


def test_the_loss_and_its_gradient_are_those_of_a_slow_version() -> None:
    trainer = Trainer(Run(**NET), open_data("digits"), Team(CPU))
    exits = Exits(0.5)
    exits.begin(trainer)
    torch.manual_seed(0)
    for parameter in exits.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch, model = next(trainer.loader.epoch(0)), trainer.model.eval()
    first = model.stem[0].weight

    x, signals = model.stem(batch.images), []
    units = find_units(model)
    ends = {units[chunk.units[-1]].path for chunk in chunks(units)[:-1]}
    for path, block in ((f"stages.{s}.{b}", block) for s, stage in enumerate(model.stages) for b, block in enumerate(stage)):
        x = block(x)
        if path in ends:
            signals.append(pooled_by_quarter(x))
    logits = model.head(x)
    wanted = (logits.detach().softmax(1) + F.one_hot(batch.labels, 10)) / 2
    said = [head(signal).log_softmax(1) for signal, head in zip(signals, exits.heads, strict=True)]
    expected = 3.0 + 0.5 * sum(-(wanted * one).sum(1).mean() for one in said) / len(said)

    found = exits.loss(torch.tensor(3.0), model(batch.images), batch.images, batch.labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, first)[0] for loss in (found, expected)))


def test_stopped_and_resumed_to_the_same_bits(
    trained: deepres.train.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.step

    def stepping(self: Trainer, batch: object) -> None:
        real(self, batch)  # type: ignore[arg-type]
        if self.progress.done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stepping)
    with pytest.raises(Interrupted):
        deepres.train(Run(**NET, out=str(tmp_path / "run")), show=False)
    monkeypatch.undo()
    deepres.resume(tmp_path / "run", show=False)
    assert trained.out is not None
    (found, _), (expected, _) = (read(out / "last.safetensors") for out in (tmp_path / "run", trained.out))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_have_exits() -> None:
    with pytest.raises(DeepresError, match="a weight of 0 or more"):
        Run("resnet20-cifar", exits=-1.0)
    with pytest.raises(DeepresError, match="too few residual blocks"):
        deepres.train(Run("plain20-cifar", "digits", HOW), show=False)
    with pytest.raises(DeepresError, match="while a network is shrunk"):
        deepres.shrink("resnet20-cifar", "digits", "blocks=5", recipe=HOW, show=False)
