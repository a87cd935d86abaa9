"""The monitor takes snapshots of a run and changes nothing."""

from pathlib import Path

import pytest
import torch

import deepres
from deepres import DeepresError, Run
from deepres.adapters import delete_blocks
from deepres.lens.figures import over_training
from deepres.lens.monitor import Monitor, parse_every, read_snapshots, take_snapshot


def test_how_often_is_parsed() -> None:
    assert parse_every("every=1epoch") == (1.0, "epoch")
    assert parse_every("200steps") == (200.0, "step")
    for wrong in ("often", "every=0epochs", "0.5steps", "1 day"):
        with pytest.raises(DeepresError, match="such as every=1epoch"):
            parse_every(wrong)


def test_a_monitored_run_is_the_same_run(tmp_path: Path) -> None:
    settings = {"net": "resnet8-cifar", "data": "digits", "recipe": "digits", "epochs": 2, "speed": "exact", "width": 0.5}
    alone = deepres.train(Run(**settings), show=False)
    out = tmp_path / "run"
    out.mkdir()
    monitor = Monitor("every=0.5epochs", out, say=lambda _: None)
    watched = deepres.train(Run(**settings, out=str(out)), show=False, callbacks=[monitor])
    assert all(
        torch.equal(a, b) for a, b in zip(alone.model.state_dict().values(), watched.model.state_dict().values(), strict=True)
    )
    snapshots = read_snapshots(out)
    assert snapshots == monitor.snapshots and len(snapshots) == 4
    assert snapshots[0].sites[0].update is None and snapshots[1].sites[0].update > 0
    assert all(0 < site.by_shortcut < 1 and site.gradient > 0 for one in snapshots for site in one.sites)


def test_the_monitor_says_when_a_block_dies() -> None:
    model = deepres.create("resnet14-cifar").train()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    seen = take_snapshot(model, images, labels, None, 0, 0.0)
    assert seen is not None and seen.warnings() == []
    with torch.no_grad():
        model.stages[0].blocks[1].branch.norm2.bias.fill_(-1000.0)
    seen = take_snapshot(model, images, labels, None, 0, 0.0)
    assert seen is not None
    assert any("stages.0.blocks.1: every channel is zero" in line for line in seen.warnings())
    said: list[str] = []
    monitor = Monitor("1step", say=said.append)
    for step in range(2):
        monitor.look(model, images, labels, torch.optim.SGD(model.parameters(), 0.1), step, 10)
    assert sum("stages.0.blocks.1: every" in line for line in said) == 1  # once is enough


def test_a_step_that_is_taken_again_counts_once(tmp_path: Path) -> None:
    """A run that crashed goes on from its last checkpoint, behind which it has taken snapshots already."""
    model = deepres.create("resnet8-cifar").train()
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    monitor = Monitor("1step", tmp_path, say=lambda _: None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in (0, 1, 2, 1, 2, 3):
        monitor.look(model, images, labels, optimizer, step, 10)
        model.stages[0].blocks[0].branch.conv1.weight.data.mul_(1.1)
    assert read_snapshots(tmp_path) == [monitor.snapshots[0], *monitor.snapshots[3:]]


def test_sites_that_were_removed_leave_empty_cells() -> None:
    model = deepres.create("resnet14-cifar").train()
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    seen = [take_snapshot(model, images, labels, None, 0, 0.0)]
    delete_blocks(model, ["stages.1.blocks.1"])
    seen.append(take_snapshot(model, images, labels, None, 1, 1.0))
    ratios = over_training([one for one in seen if one is not None]).data[0].z
    assert [row[1] is None for row in ratios] == [False, False, False, True, False, False]
    assert all(row[0] is not None for row in ratios)
