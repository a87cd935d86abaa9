"""One timing module: alternating turns, spans inside a pass, work that a device does later, one process's figures for all."""

from __future__ import annotations

import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import deepres
from deepres.adapters import find_blocks
from deepres.engines import throughput
from deepres.evaluation import block_times, branch_times, outside_times, time_against
from deepres.evaluation.timing import alternate, call_times, from_first_process, timeline
from deepres.exits import ExitHead
from deepres.ghosting import Gate, Ghost
from deepres.ghosting.fit import costs
from deepres.shrinking import time_ratio

CPU = torch.device("cpu")


class QueueingDevice:
    """A simulated GPU: a call only queues its work, and the clock moves by that work when somebody waits for it."""

    def __init__(self) -> None:
        self.clock, self.queued = 0.0, 0.0

    def work(self, seconds: float) -> None:
        self.queued += seconds

    def synchronise(self, device: torch.device) -> None:
        self.clock, self.queued = self.clock + self.queued, 0.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> QueueingDevice:
    simulated = QueueingDevice()
    monkeypatch.setattr(time, "perf_counter", lambda: simulated.clock)
    monkeypatch.setattr("deepres.evaluation.timing.synchronise", simulated.synchronise)
    return simulated


def slowed(module: nn.Module, device: QueueingDevice, seconds: float) -> None:
    module.register_forward_hook(lambda *_: device.work(seconds), prepend=True)


def test_calls_take_turns_in_alternating_order(device: QueueingDevice) -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        device.work(seconds)

    calls = {"a": partial(call, "a", 2.0), "b": partial(call, "b", 3.0)}
    assert alternate(calls, CPU, turns=3, warmup=1) == {"a": [2.0] * 3, "b": [3.0] * 3}
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    # a limit of time ends the turns, but not before there are three
    assert len(alternate(calls, CPU, turns=25, seconds=19.0)["a"]) == 4
    assert len(alternate(calls, CPU, turns=25, seconds=0.0)["a"]) == 3
    assert call_times(calls["a"], CPU, repeats=4) == [2.0] * 4


def test_throughput_waits_for_the_device(device: QueueingDevice) -> None:
    net = nn.Linear(3, 2)
    slowed(net, device, 0.5)
    assert throughput(net, torch.zeros(8, 3)) == 16


def test_one_lucky_turn_does_not_make_a_network_faster(device: QueueingDevice) -> None:
    calls = {"whole": 0, "other": 0}

    def call(name: str, seconds: float) -> None:
        calls[name] += 1
        lucky = name == "whole" and calls[name] == 4  # a turn in which the machine was at twice its speed
        device.work(seconds / 2 if lucky else seconds)

    ratio, (low, high) = time_against(lambda x: call("whole", 10.0), lambda x: call("other", 6.0), torch.zeros(1, 3), 1)
    assert ratio == pytest.approx(0.6)
    assert low == high == pytest.approx(0.6)


def test_two_networks_are_timed_in_eval_mode_and_left_as_they_were(device: QueueingDevice) -> None:
    whole, half = nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.Linear(3, 3).eval()
    for net, seconds in ((whole, 10.0), (half, 5.0)):
        slowed(net, device, seconds)
        net.register_forward_hook(lambda module, *_: device.work(100.0 * module.training))
    assert time_ratio(whole, half, torch.zeros(8, 3), turns=4) == (0.5, (0.5, 0.5))
    assert whole.training and not half.training


def test_points_inside_a_pass(device: QueueingDevice) -> None:
    net = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    for layer, seconds in zip(net, (1.0, 2.0, 4.0), strict=True):
        slowed(layer, device, seconds)
    points = [(net[1], "before"), (net[1], "after"), (net[2], "after")]
    rows = timeline(points, lambda: net(torch.zeros(1)), CPU, repeats=2)
    assert rows == [[1.0, 3.0, 7.0, 7.0]] * 2
    assert not any(module._forward_pre_hooks or len(module._forward_hooks) > 1 for module in net)


def test_shares_of_blocks_and_branches(device: QueueingDevice) -> None:
    model = deepres.create("resnet8-cifar").eval()
    leaves = [module for module in model.modules() if not list(module.children())]
    for leaf in leaves:
        slowed(leaf, device, 1.0)
    model(torch.zeros(1, 3, 8, 8))
    total, device.queued = device.queued, 0.0
    inside = [sum(module in leaves for module in unit.sites[0].block.modules()) for unit in find_blocks(model)]
    x = torch.zeros(1, 3, 8, 8)
    assert block_times(model, find_blocks(model), x) == [count / total for count in inside]
    # all but the ReLU behind the sum, and the shortcut's layers where it has any
    assert branch_times(model, deepres.sites(model), x)[0] == (inside[0] - 1) / total
    # a stem of three layers, one that closes each stage, and three of the head behind the last block
    assert outside_times(model, find_blocks(model), x) == pytest.approx([3 / total, 1 / total, 1 / total, 4 / total])


def test_costs_of_gates_and_exits_wait_for_the_device(device: QueueingDevice) -> None:
    """Without waiting, a gate or an exit on a GPU costs what it takes to queue its kernels: nothing."""
    made = Ghost(deepres.create("resnet14-cifar"))
    inputs = torch.zeros(4, 3, 8, 8)
    for block in (block.sites[0].block for block in made.blocks):
        slowed(block, device, 10.0)
    channels = [made.blocks[segment.blocks[0]].sites[0].block(inputs.new_zeros(1, width, 4, 4)).shape[1]
                for segment, width in zip(made.segments, (16, 16, 32), strict=True)]  # fmt: skip
    entering = [16, *channels[:-1]]
    for c, (before, behind) in enumerate(zip(entering, channels, strict=True)):
        made.gates[c], made.exits[c] = Gate(before, len(made.segments[c].skippable)), ExitHead(4 * behind, 10)
        slowed(made.gates[c], device, 3.0)
        slowed(made.exits[c], device, 6.0)
    device.queued = 0.0
    found = costs(made, inputs)
    assert found.blocks.tolist() == pytest.approx([1 / 6] * 6)
    assert found.gates.tolist() == pytest.approx([0.05] * 3)
    assert found.exits.tolist() == pytest.approx([0.1] * 3)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def join(rank: int, port: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


def _share_figures(rank: int, port: int, folder: str) -> None:
    join(rank, port)
    Path(folder, f"{rank}.txt").write_text(repr(from_first_process([0.1 + rank, "of", rank])))
    torch.distributed.destroy_process_group()


def test_the_first_process_measures_for_all(tmp_path: Path) -> None:
    assert from_first_process({"alone": 1.0}) == {"alone": 1.0}
    mp.spawn(_share_figures, args=(free_port(), str(tmp_path)), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["[0.1, 'of', 0]"] * 2
