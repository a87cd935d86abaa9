"""Exits that learn with the network: its signal can be read earlier, the gradient is the loss's, and a run resumes to the bit."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from run_helpers import Stop

import deepres
from deepres import DeepresError, Run
from deepres.adapters import find_blocks, segments
from deepres.data import open_data
from deepres.exits.supervision import DeepSupervision
from deepres.ghosting.recording import batches
from deepres.models import read_checkpoint
from deepres.training import Interrupted, Recipe, Trainer
from deepres.training.distribute import DistributedContext

HOW = Recipe("tiny", epochs=4, batch=64, lr=0.05, schedule="one-cycle", warmup=0.3, augment="none", exits=0.5)
NET = {"net": "resnet20-cifar", "data": "digits", "recipe": HOW, "speed": "exact", "width": 0.5, "memory": "all"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[deepres.training.Result, DeepSupervision]:
    exits = DeepSupervision(0.5)
    run = Run(**NET | {"recipe": dataclasses.replace(HOW, exits=0.0)}, out=str(tmp_path_factory.mktemp("exits") / "run"))
    return deepres.train(run, show=False, callbacks=[exits]), exits


@pytest.fixture
def trained(learnt: tuple[deepres.training.Result, DeepSupervision]) -> deepres.training.Result:
    return learnt[0]


def test_network_and_exits_learn(learnt: tuple[deepres.training.Result, DeepSupervision]) -> None:
    result, exits = learnt
    assert result.test.top1 < 15
    units = find_blocks(result.model)
    ends = [units[segment.blocks[-1]].sites[0].block for segment in segments(units)[:-1]]
    assert len(ends) == len(exits.heads) == 2
    signals: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, out: signals.append(out)) for block in ends]
    images, labels = next(batches(open_data("digits"), "test", 400, CPU, 400))
    with torch.no_grad():
        result.model(images)
        exits.heads.eval()
        errors = [float((head(z).argmax(1) != labels).float().mean()) for z, head in zip(signals, exits.heads, strict=True)]
    for handle in handles:
        handle.remove()
    assert errors[0] < 0.3 and errors[1] < 0.2


def test_what_is_left_is_the_plain_network(trained: deepres.training.Result) -> None:
    plain = deepres.create("resnet20-cifar", width=0.5, in_channels=1)
    assert trained.model.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks for module in trained.model.modules())


def test_the_loss_and_its_gradient_are_those_of_a_slow_version() -> None:
    trainer = Trainer(Run(**NET), open_data("digits"), DistributedContext(CPU))
    exits = DeepSupervision(0.5)
    exits.run_begins(trainer)
    torch.manual_seed(0)
    for head in exits.heads:
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    assert [len(head[0]) for head in exits.heads] == [6, 3]  # two halvings lie ahead of the first, one of the second
    batch, model = next(trainer.loader.epoch(0)), trainer.model.eval()
    first = model.stem[0].weight

    x, signals = model.stem(batch.images), []
    units = find_blocks(model)
    ends = {units[segment.blocks[-1]].path for segment in segments(units)[:-1]}
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage.blocks):
            x = block(x)
            if f"stages.{s}.blocks.{b}" in ends:
                signals.append(x)
        x = stage.close(x)
    logits = model.head(x)
    wanted = (logits.detach().softmax(1) + F.one_hot(batch.labels, 10)) / 2
    said = [head(signal).log_softmax(1) for signal, head in zip(signals, exits.heads, strict=True)]
    expected = 3.0 + 0.5 * sum(-(wanted * one).sum(1).mean() for one in said) / len(said)

    found = exits.loss(trainer, torch.tensor(3.0), model(batch.images), batch.images, batch.labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, first)[0] for loss in (found, expected)))


def test_stopped_and_resumed_to_the_same_bits(trained: deepres.training.Result, tmp_path: Path) -> None:
    """The recipe's ``exits`` adds the same callback."""
    with pytest.raises(Interrupted):
        deepres.train(Run(**NET, out=str(tmp_path / "run")), show=False, callbacks=[Stop(9)])
    deepres.resume(tmp_path / "run", show=False)
    assert trained.out is not None
    (found, _), (expected, _) = (read_checkpoint(out / "last.safetensors") for out in (tmp_path / "run", trained.out))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_have_exits() -> None:
    with pytest.raises(DeepresError, match="a weight of 0 or more"):
        Run("resnet20-cifar", exits=-1.0)
    with pytest.raises(DeepresError, match="too few residual blocks"):
        deepres.train(Run("plain20-cifar", "digits", HOW), show=False)
    with pytest.raises(DeepresError, match="while a callback changes the network"):
        deepres.shrink("resnet20-cifar", "digits", "blocks=5", recipe=HOW, show=False)
