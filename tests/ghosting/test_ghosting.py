"""Depth by input: exact at a budget of 1, the same answer whatever else is in the batch, blocks that are skipped are not computed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import deepres
from deepres.data import Data
from deepres.exits import Coarser, ExitHead, coarse, pooled_by_quarter, readers, without_norms
from deepres.exits.fitting import FIT_ROUNDS, fit_exit, fit_readers
from deepres.ghosting import Gate, Ghost, Settings
from deepres.ghosting.recording import batches, record_signals

CPU = torch.device("cpu")


def some(made: Ghost, images: torch.Tensor) -> Settings:
    """Settings with which some blocks are skipped, and half of ``images`` exit behind the first segment."""
    skip = float(torch.cat([gate.bias for gate in made.gates if isinstance(gate, Gate)]).median())
    first = made.record(images, Settings(skip))[2][0]
    assert first is not None
    return Settings(skip, float(first[1].median()), 0.5)


def test_by_default_it_is_the_network_to_the_bit(fitted: Ghost, images: torch.Tensor) -> None:
    fitted.settings = Settings()
    assert torch.equal(fitted(images), fitted.net(images))
    assert torch.equal(fitted(images, trace=True), fitted.net(images))
    assert fitted.trace is not None and fitted.trace.ran.all() and (fitted.trace.exited_at == -1).all()


def test_the_answer_does_not_depend_on_the_batch(fitted: Ghost, images: torch.Tensor) -> None:
    fitted.settings = some(fitted, images)
    whole = fitted(images, trace=True)
    ran, exited_at, recomputed = fitted.trace.ran, fitted.trace.exited_at, fitted.trace.recomputed
    assert (exited_at >= 0).float().mean() > 0 and 0 < ran.float().mean() < 1 and len(ran.unique(dim=0)) > 2
    for i in (0, 7, 47):
        alone = fitted(images[i : i + 1], trace=True)
        torch.testing.assert_close(alone[0], whole[i], atol=1e-4, rtol=1e-4)
        assert (
            torch.equal(fitted.trace.ran[0], ran[i])
            and fitted.trace.exited_at[0] == exited_at[i]
            and fitted.trace.recomputed[0] == recomputed[i]
        )
    order = torch.randperm(len(images))
    torch.testing.assert_close(fitted(images[order]), whole[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mean", [False, True])
def test_a_slow_obvious_version_agrees(fitted: Ghost, images: torch.Tensor, mean: bool) -> None:
    """Every branch computed, one input at a time, through the sites' own scales."""
    fitted.settings = dataclasses.replace(some(fitted, images), fallback_threshold=0.0, average=mean)
    found = fitted(images, trace=True)
    trace = fitted.trace
    assert len(trace.exited_at.unique()) > 1
    for i in range(len(images)):
        x = fitted.net.stem(images[i : i + 1]) if hasattr(fitted.net, "stem") else None
        assert x is not None
        answer, said = None, []
        for c, segment in enumerate(fitted.segments):
            gate, head = fitted.gates[c], fitted.exits[c]
            worth = gate(x) if isinstance(gate, Gate) else None
            for place in segment.blocks:
                block = fitted.blocks[place].sites[0].block
                out = type(block).forward(block, x)
                if place in segment.skippable and worth[0, segment.skippable.index(place)] < fitted.settings.skip_threshold:
                    out = x
                    assert not trace.ran[i, place]
                x = out
            if isinstance(head, ExitHead):
                logits, confidence = head(x)
                known = bool(confidence > 0)
                said += [logits[0].log_softmax(0)] if known else []
                now = torch.stack(said).mean(0) if mean and said else logits[0]
                if known and now.softmax(0).max() >= fitted.settings.exit_threshold:
                    answer = now
                    assert trace.exited_at[i] == c
                    break
        if answer is None:
            assert trace.exited_at[i] == -1
            answer = fitted.net.head(fitted.net.stages[-1].close(x))[0]
            if mean:
                answer = torch.stack([*said, (answer / fitted.temperature).log_softmax(0)]).mean(0)
        torch.testing.assert_close(found[i], answer, atol=1e-4, rtol=1e-4)


def test_norms_are_folded_into_what_reads() -> None:
    """Of signals of four sizes the last is read as it is, and so are tokens."""
    torch.manual_seed(0)
    signals = [torch.randn(4, *shape) for shape in ((16, 16, 16), (32, 7, 7), (200, 8, 8), (8, 70, 50), (64, 4, 4))]
    reading = readers(signals)
    assert [sum(isinstance(layer, nn.Conv2d) for layer in one) for one in reading] == [2, 1, 1, 3]
    assert [isinstance(one[0], Coarser) for one in reading] == [False, False, False, True]
    torch.testing.assert_close(coarse(signals[3])[:, :, 0, 0], signals[3][:, :, :3, :3].mean((2, 3)))
    assert coarse(signals[3]).shape[2:] == (24, 17) and coarse(signals[0]) is signals[0]
    for reader, signal in zip(reading, signals, strict=False):
        for _ in range(3):
            reader.train()(signal)
        expected = reader.eval()(signal)
        plain = without_norms(reader)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain)
        torch.testing.assert_close(plain(signal), expected, atol=1e-5, rtol=1e-5)
        head = ExitHead(pooled_by_quarter(expected).shape[1], 10, plain)
        again = ExitHead.from_state(head.state_dict())
        again.load_state_dict(head.state_dict())
        torch.testing.assert_close(again(signal), head(signal))
    assert not any(len(one) for one in readers([torch.randn(2, 17, 48)] * 3))


def test_reading_is_learnt_as_well_where_not_all_signals_can_be_kept(run: Path, data: Data) -> None:
    """Part by part, in several rounds, each of which runs the network once over all the examples."""
    given, held = list(batches(data, "train", 1000, CPU)), list(batches(data, "val", 200, CPU))
    errors, ran = [], []
    for room in (2 << 30, 1 << 20):
        made, seen = Ghost(deepres.load(run)), []
        counter = made.net.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        reading = fit_readers(made.net, made.ends, given, room=room)
        counter.remove()
        ran.append(sum(seen) - 2)  # but for the first look at the signals' sizes
        assert [len(one) for one in reading] == [4, 2]
        fitted, told = record_signals(made, given, reading), record_signals(made, held, reading)
        for c, one in enumerate(reading):
            head = fit_exit(fitted.outputs[c], fitted.logits.softmax(1), told.outputs[c], told.labels, one)
            errors.append(float((head.linear(told.outputs[c])[0].argmax(1) != told.labels).float().mean()))
    count = sum(len(y) for _, y in given)
    assert ran == [count, FIT_ROUNDS * count]
    assert max(errors) < 0.1 and abs(errors[0] - errors[2]) < 0.05, errors


@pytest.mark.parametrize(
    "asked", [{}, {"gates": (0,), "exits": (1,)}, {"gates": (1,), "exits": (0,)}, {"skip_threshold": None, "exits": (1,)}]
)
def test_blocks_at_which_nothing_is_decided_change_nothing(fitted: Ghost, images: torch.Tensor, asked: dict) -> None:  # type: ignore[type-arg]
    """Without a trace their calls go straight to them."""
    fitted.settings = dataclasses.replace(some(fitted, images), **asked)
    noted = fitted(images, trace=True)
    assert not fitted.trace.ran.all()
    torch.testing.assert_close(fitted(images), noted, atol=0, rtol=0)


def test_skipped_means_not_computed(fitted: Ghost, images: torch.Tensor) -> None:
    fitted.settings = dataclasses.replace(some(fitted, images), fallback_threshold=0.0)
    rows: dict[int, int] = {}
    handles = [
        unit.sites[0].block.branch.register_forward_pre_hook(
            lambda _, args, i=i: rows.__setitem__(i, rows.get(i, 0) + len(args[0]))
        )
        for i, unit in enumerate(fitted.blocks)
    ]
    fitted(images, trace=True)
    for handle in handles:
        handle.remove()
    counted = fitted.trace.ran.sum(0).tolist()
    assert [rows.get(i, 0) for i in range(len(fitted.blocks))] == counted and sum(counted) < fitted.trace.ran.numel()


def test_what_is_strange_gets_the_full_depth(fitted: Ghost, images: torch.Tensor) -> None:
    fitted.settings = some(fitted, images)
    fitted(50 * torch.randn_like(images), trace=True)
    assert fitted.trace.ran.float().mean() > 0.99 and (fitted.trace.exited_at >= 0).float().mean() < 0.01


def test_a_fixed_choice_is_the_same_for_all(fitted: Ghost, images: torch.Tensor) -> None:
    worth = torch.cat([gate.bias for gate in fitted.gates if isinstance(gate, Gate)])
    fitted.settings = Settings(float(worth.median()), fixed=True)
    fitted(images, trace=True)
    assert len(fitted.trace.ran.unique(dim=0)) == 1 and not fitted.trace.ran.all()


@pytest.mark.parametrize("mean", [False, True])
def test_no_time_left_means_leaving_at_once(fitted: Ghost, images: torch.Tensor, mean: bool) -> None:
    """Also for what is strange, which is answered as well as can be, and alone as in a batch."""
    images = torch.cat([images[:6], 50 * torch.randn_like(images[:6])])
    fitted.settings, fitted.deadline = Settings(average=mean), 1e-9
    try:
        answers = fitted(images, trace=True)
        trace = fitted.trace
        alone = torch.cat([fitted(image) for image in images.split(1)])
    finally:
        fitted.deadline = None
    assert (trace.exited_at == 0).all() and not trace.ran[:, fitted.segments[0].blocks[-1] + 1 :].any()
    assert (answers.amax(1) > answers.amin(1)).all()
    torch.testing.assert_close(alone, answers, atol=1e-3, rtol=1e-3)


def test_the_network_that_is_given_stays_where_it_is() -> None:
    """The ghost computes there too; ``meta`` stands for any device that is not the CPU."""
    net = deepres.create("resnet8-cifar").to("meta")
    assert {p.device.type for p in net.parameters()} == {p.device.type for p in Ghost(net).net.parameters()} == {"meta"}
