"""Depth by input: exact at a budget of 1, the same answer whatever else is in the batch, found settings that keep what they foretell."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.adapters import find_blocks, logits_of, segments
from deepres.cli.main import main
from deepres.data import Data, open_data
from deepres.exits import Coarser, ExitHead, coarse, pooled_by_quarter, readers, without_norms
from deepres.exits.fitting import FIT_ROUNDS, fit_exit, fit_readers
from deepres.ghosting import Gate, Ghost, GhostResult, Point, Settings, ghost, load_ghost, save_ghost
from deepres.ghosting.candidates import frontier
from deepres.ghosting.confirm import clopper_pearson, confirmed, rise_bound, within_error
from deepres.ghosting.fit import Costs, block_divergences, costs, fit_ghost
from deepres.ghosting.points import pareto_front
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches, record_signals
from deepres.ghosting.selection import fastest
from deepres.training import recipe, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """A small network that reads digits."""
    out = tmp_path_factory.mktemp("ghost") / "run"
    how = recipe("digits", epochs=5)
    train(Run("resnet26-cifar", "digits", how, str(out), speed="float32-channels-last", width=0.5), data=data, show=False)
    return out


@pytest.fixture(scope="module")
def fitted(run: Path, data: Data) -> Ghost:
    made = Ghost(deepres.load(run))
    fit_ghost(made, data, examples=300)
    return made


@pytest.fixture
def images(data: Data) -> torch.Tensor:
    return next(batches(data, "test", 48, CPU))[0]


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


def test_a_setting_that_is_faster_by_luck_alone_is_not_taken(fitted: Ghost, images: torch.Tensor) -> None:
    whole, *points = (Point(Settings(exit_threshold=leave), 5.0, 0.5, 1.0, 0.0) for leave in (None, 0.9, 0.8, 0.7))
    measured = {0.9: (0.93, (0.9, 1.04)), 0.8: (0.96, (0.95, 0.98)), 0.7: (0.97, (0.9, 0.99))}
    select = partial(fastest, measure=lambda made, inputs, batch: measured[made.settings.exit_threshold])
    assert select(fitted, points, whole, images, 1) is points[1] and fitted.settings == points[1].settings
    assert select(fitted, points[:1], whole, images, 1) is whole and fitted.settings.whole
    assert select(fitted, [], whole, images, 1) is whole


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


@pytest.mark.parametrize("name", ["ours", "torchvision", "ViT"])
def test_a_fixed_choice_is_an_ordinary_network(name: str) -> None:
    """Blocks of every kind passed through, among them all of a stage."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    build = {"ours": lambda: deepres.create("resnet20-cifar"), "torchvision": lambda: resnet18(num_classes=10), "ViT": hf_vit}
    made = Ghost(build[name]())
    x = torch.randn(2, 3, 32, 32)
    for c, segment in enumerate(made.segments):
        if segment.skippable:
            made.gates[c] = Gate(1, len(segment.skippable))
            made.gates[c].bias.copy_(
                -torch.ones(len(segment.skippable)) if c == 0 else torch.arange(len(segment.skippable)) % 2.0
            )
    made.settings = Settings(0.5, fixed=True)
    expected = made(x)
    net = made.static()
    assert type(net) is type(made.net) and sum(p.numel() for p in net.parameters()) < sum(
        p.numel() for p in made.net.parameters()
    )
    torch.testing.assert_close(logits_of(net, x), getattr(expected, "logits", expected), atol=1e-5, rtol=1e-5)
    if name != "ViT":
        exported = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-5)
    made.settings = Settings(0.5)
    with pytest.raises(DeepresError, match="depend on the input"):
        made.static()


def test_the_frontier_foretells_what_happens(fitted: Ghost, data: Data) -> None:
    given = list(batches(data, "val", 150, CPU))
    points = frontier(Passes(fitted, given), costs(fitted, given[0][0][:32]))
    assert {point.settings.average for point in points} == {False, True}
    assert points[0].settings.whole and points[0].time == pytest.approx(1, abs=0.3)
    averaged = max((point for point in points if point.settings.average), key=lambda point: point.exited)
    for point in (points[5], points[len(points) // 2], points[-3], averaged):
        fitted.settings = point.settings
        right, ran = 0, []
        for x, y in given:
            right += int((fitted(x, trace=True).argmax(1) == y).sum())
            ran.append(fitted.trace.ran)
        assert point.error == pytest.approx(100 * (1 - right / 143), abs=0.8)  # of 143 validation examples
        assert point.blocks == pytest.approx(float(torch.cat(ran).float().mean()), abs=0.02)
    line = pareto_front(points)
    assert all(a.time < b.time and a.error > b.error for a, b in pairwise(line))
    kinds = within_error(points, points[0].error, 0.5)
    assert kinds and all(point.error <= points[0].error + 0.5 for mine in kinds.values() for point in mine)
    assert all(a.time < b.time for mine in kinds.values() for a, b in pairwise(mine))


def test_larger_shares_are_not_tried_where_several_in_a_row_add_nothing(fitted: Ghost, data: Data) -> None:
    whole = Point(Settings(), 5.0, 1.0, 1.0, 0.0)
    useless = dataclasses.replace(whole, error=9.0, time=1.1)
    useful = dataclasses.replace(whole, error=6.0, time=0.5)
    given = [[whole], [], [], [], [useless], [useless], [useful], [useless], [useless], [useless], [useful], [useful]]
    asked: list[float | None] = []

    def evaluate(passes: Passes, settings: Settings, costs: Costs) -> list[Point]:
        asked.append(settings.skip_threshold)
        return given[len(asked) - 1]

    held = Passes(fitted, list(batches(data, "val", 150, CPU)))
    points = frontier(held, costs(fitted, held.given[0][0][:32]), kinds=("fitted",), evaluate=evaluate)
    assert len(asked) == 10 and asked[0] is None and asked[1:] == sorted(asked[1:])
    assert points[0] is whole and [point.time for point in pareto_front(points)] == [0.5, 1.0]


def test_what_is_foretold_to_save_nothing_is_not_asked() -> None:
    """Tests follow an order and end with the first that fails, so one of such a setting may cost those behind it."""
    slow, fast = (
        Point(Settings(exit_threshold=leave), 4.0 + leave, time, 1.0, 0.5) for leave, time in ((0.5, 1.2), (0.9, 0.8))
    )
    whole = Point(Settings(), 5.0, 1.0, 1.0, 0.0)
    assert within_error([whole, slow, fast], 5.0, 0.2) == {(True, False, False): [fast]}


def test_what_fresh_examples_do_not_confirm_is_passed_over(fitted: Ghost, data: Data) -> None:
    """Settings that look as good as the network where they were chosen, and are not."""
    bad, good = Settings(skip_threshold=1e9), Settings(exit_threshold=2.0)  # every block passed through; nobody leaves
    kind = (True, False, False)
    points = {kind: [Point(settings, 0.0, time, 1.0, 0.0) for settings, time in ((bad, 0.1), (good, 0.9))]}
    fresh = Passes(fitted, list(batches(data, "test", 359, CPU)))
    said: list[str] = []
    found = confirmed(points, fresh, 1.0, said.append)
    assert [point.settings for point in found] == [good]
    assert "0 right answers lost and 0 won of 359" in said[0] and len(said) == 2
    assert confirmed(points, fresh, 0.3) == []  # 359 examples cannot confirm as little
    assert confirmed(points, Passes(fitted, []), 0.3)[0].settings == bad
    rows = list(batches(data, "val", 40, CPU)), list(batches(data, "val", 1000, CPU, skip=40))
    assert [sum(len(y) for _, y in part) for part in rows] == [40, len(data.val) - 40]
    # a faster one that passes by luck behind one that fails is not looked at
    points = {kind: [Point(settings, 0.0, time, 1.0, 0.0) for settings, time in ((good, 0.1), (bad, 0.5), (good, 0.9))]}
    assert [point.time for point in confirmed(points, fresh, 1.0)] == [0.9]


def test_the_bound_of_a_rise_holds_as_often_as_it_says() -> None:
    """Samples of networks whose error truly rises by what was allowed pass in at most about a tenth of the cases."""
    torch.manual_seed(0)
    for lost, won, n in ((0.008, 0.006, 4000), (0.03, 0.01, 1000), (0.002, 0.0, 4000)):
        draw = torch.rand(4000, n)
        counts = zip((draw < lost).sum(1).tolist(), (draw > 1 - won).sum(1).tolist(), strict=True)
        bounds = torch.tensor([rise_bound(a, b, n) for a, b in counts])
        assert (bounds < 100 * (lost - won)).float().mean() < 0.11
        assert bounds.median() < 100 * (lost - won) + 100 * 3 * (lost + won + 1 / n) ** 0.5 / n**0.5
    assert rise_bound(0, 0, 100) > 1


def test_harm_is_the_divergence_without_the_block(fitted: Ghost, data: Data) -> None:
    given = list(batches(data, "train", 20, CPU))
    seen = record_signals(fitted, given)
    found = block_divergences(fitted, given, seen.logits, lambda what, share: None)
    place = next(i for i, unit in enumerate(fitted.blocks) if not unit.reshapes)
    block = fitted.blocks[place].sites[0].block
    with torch.no_grad():
        handle = block.register_forward_hook(lambda _, args, out: args[0])
        without = fitted.net(given[0][0]).log_softmax(1)
        handle.remove()
        before = fitted.net(given[0][0]).log_softmax(1)
    expected = (before.exp() * (before - without)).sum(1).clamp(min=1e-6).log10()
    torch.testing.assert_close(found[: len(expected), place], expected, atol=1e-2, rtol=1e-2)
    assert torch.isinf(found[:, [i for i, unit in enumerate(fitted.blocks) if unit.reshapes]]).all()


def test_chunks_end_with_their_lists() -> None:
    units = find_blocks(deepres.create("resnet56-cifar"))
    found = segments(units, 5)
    assert [len(segment.blocks) for segment in found] == [4, 5] * 3
    assert sum((segment.blocks for segment in found), ()) == tuple(range(27))
    assert [i for i in range(27) if not any(i in segment.skippable for segment in found)] == [9, 18]


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


@pytest.mark.parametrize(("count", "n", "bound"), [(0, 100, 0.02951), (5, 100, 0.10225), (100, 100, 1.0), (0, 1, 0.95)])
def test_the_bound_is_clopper_and_pearsons(count: int, n: int, bound: float) -> None:
    assert clopper_pearson(count, n) == pytest.approx(bound, abs=2e-5)


def test_llama_s_classifier_which_indexes_the_whole_batch() -> None:
    """Masks, rotary positions and a head that looks up each row's last token, while rows skip blocks and exit early."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    net = LlamaForSequenceClassification(LlamaConfig(**small, vocab_size=50, num_hidden_layers=9, num_labels=3, pad_token_id=0))
    made, tokens = Ghost(net), torch.randint(1, 50, (8, 6))
    tokens[::2, 4:] = 0  # padding
    for c, segment in enumerate(made.segments):
        made.gates[c] = Gate(16, len(segment.skippable))
        made.gates[c].weight.normal_()
    made.exits[0] = ExitHead(32, 3)
    made.exits[0].weight.normal_(std=9.0)
    with torch.no_grad():
        expected = net.eval()(tokens).logits
        torch.testing.assert_close(made(tokens).logits, expected, rtol=0, atol=0)
        threshold = float(made.record(tokens, Settings())[2][0][1].sort().values[3:5].mean())  # between two inputs
        for settings in (Settings(0.0), Settings(None, threshold), Settings(0.0, threshold, 0.9, average=True)):
            made.settings = settings
            found = logits_of(made, tokens)
            made(tokens, trace=True)
            assert not made.trace.ran.all() and (
                settings.skip_threshold is not None or 0 < (made.trace.exited_at == 0).sum() < 8
            )
            torch.testing.assert_close(
                torch.cat([logits_of(made, row) for row in tokens.split(1)]), found, rtol=1e-4, atol=1e-5
            )
        made.settings = Settings(None, threshold)
        found, stayed = made(tokens, trace=True), made.trace.exited_at < 0
        torch.testing.assert_close(logits_of(made, tokens)[stayed], expected[stayed], rtol=1e-4, atol=1e-5)


def test_settings_saved_by_earlier_versions() -> None:
    old = {"skip": 0.5, "leave": 0.9, "sure": 0.4, "fixed": False, "gates": [0], "exits": [1, 2], "mean": True}
    expected = Settings(0.5, 0.9, 0.4, False, (0,), (1, 2), True)
    assert Settings.from_dict(old) == expected == Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(expected))))
    assert expected.describe() == (
        "blocks skipped by input, early exit at a confidence of 0.9 of the exits' average, fallback to full depth below 0.4"
    )


def test_the_network_that_is_given_stays_where_it_is() -> None:
    """The ghost computes there too; ``meta`` stands for any device that is not the CPU."""
    net = deepres.create("resnet8-cifar").to("meta")
    assert {p.device.type for p in net.parameters()} == {p.device.type for p in Ghost(net).net.parameters()} == {"meta"}


@pytest.fixture(scope="module")
def made(run: Path) -> GhostResult:
    return ghost(run, "digits", error=1.0, batch=16, examples=300)


def test_within_an_error_and_kept_on_disk(
    made: GhostResult, run: Path, data: Data, images: torch.Tensor, tmp_path: Path
) -> None:
    assert isinstance(made, GhostResult) and made.verified.n == 359 and set(made.times) == {1, 16}
    assert made.verified.rise < 5 and 0 < made.verified.bound < 10 and len(made.verified.by_class) == 10
    assert made.verified.ghost == pytest.approx(
        100 * (1 - sum((made.model(x).argmax(1) == y).sum().item() for x, y in batches(data, "test", 359, CPU)) / 359),
        rel=1e-5,
    )
    assert made.unconfirmed == 1.0  # of 143 validation examples all chose
    assert ("was not confirmed" in " ".join(made.summary())) == (not made.model.settings.whole)
    assert "was not confirmed" not in " ".join(dataclasses.replace(made, unconfirmed=None).summary())
    if made.model.settings.exit_threshold is not None:
        for whole, says in ((made.verified.ghost, False), (made.verified.ghost + 10, True)):
            worse = dataclasses.replace(made, verified=dataclasses.replace(made.verified, whole=whole))
            assert ("longer training would improve it" in " ".join(worse.summary())) == says
    save_ghost(made, tmp_path / "ghost")
    again, noted = load_ghost(tmp_path / "ghost")
    assert noted["classes"] == list(data.classes) and again.settings == made.model.settings
    assert torch.equal(again(images), made.model(images))
    assert json.loads((tmp_path / "ghost" / "ghost.json").read_text())["verified"]["n"] == 359
    assert deepres.load(tmp_path / "ghost" / "net.safetensors").config == deepres.load(run).config
    with pytest.raises(DeepresError, match="holds no readable ghost"):
        load_ghost(tmp_path)


def timm_net() -> nn.Module:
    import timm

    return timm.create_model("resnet26", num_classes=10, in_chans=1)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=10))


@pytest.mark.parametrize(("build", "channels"), [(timm_net, 1), (torchvision_vit, 3), (hf_vit, 3)])
def test_other_libraries_networks(build: Callable[[], nn.Module], channels: int, data: Data) -> None:
    torch.manual_seed(0)
    net = build().eval()
    x = torch.randn(6, channels, 32, 32)
    made = Ghost(net)
    for c, segment in enumerate(made.segments):
        seen: list[torch.Tensor] = []
        block = made.blocks[segment.blocks[0]].sites[0].block
        handle = block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        made(x)
        handle.remove()
        if segment.skippable:
            gate = Gate(seen[0].shape[1] if seen[0].ndim == 4 else seen[0].shape[2], len(segment.skippable))
            gate.weight.normal_()
            made.gates[c] = gate
    with torch.no_grad():
        torch.testing.assert_close(logits_of(made, x), logits_of(net, x))
        made.settings = Settings(0.0)
        out = made(x, trace=True)
    whole = getattr(out, "logits", out)
    ran = made.trace.ran
    assert 0 < ran.float().mean() < 1
    for i in range(6):
        alone = made(x[i : i + 1])
        torch.testing.assert_close(getattr(alone, "logits", alone)[0], whole[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either budget"),
        ({"budget": 0.5, "error": 1.0}, "give either budget"),
        ({"budget": 1.5}, "above 0 and at most 1"),
        ({"error": -1.0}, "0 or more"),
        ({"budget": 0.5, "gates": "none", "exits": False}, "no time can be saved"),
        ({"budget": 0.5, "gates": "some"}, "gates is one of"),
        ({"budget": 0.5, "batch": 0}, "batch is at least 1"),
        ({"budget": 0.5, "deadline": 0.0}, "above 0"),
        ({"budget": 0.01, "examples": 100}, "cannot be kept"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, object], says: str, run: Path) -> None:
    with pytest.raises(DeepresError, match=says):
        ghost(run, "digits", **options)  # type: ignore[arg-type]


def test_what_cannot_be_a_ghost_says_why(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DeepresError, match="no residual block"):
        Ghost(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(DeepresError, match="no such run or file"):
        ghost("nothing", "digits", budget=0.5)
    with pytest.raises(DeepresError, match="cannot be copied"):
        __import__("copy").deepcopy(Ghost(deepres.create("resnet8-cifar")))


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["ghost", str(run), "--data", "digits", "--error", "1", "--examples", "300", "--batch", "8"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "On the test split of 359 examples" in said and "At batch 8 a call takes" in said
    assert {"ghost.json", "ghost.safetensors", "net.safetensors", "report.html"} <= {p.name for p in out.iterdir()}
    page = (out / "report.html").read_text()
    assert "Blocks that run for each class" in page and "Clopper-Pearson" in page
    assert main(["ghost", str(run)]) == 2
    assert "give --budget" in capsys.readouterr().err


def test_the_page_in_a_browser(made: GhostResult, tmp_path: Path, browse: Callable[..., Any]) -> None:
    from deepres.ghosting.page import ghost_page

    path = ghost_page(made, name="net", data="digits", footer="").write(tmp_path / "report.html")
    view = browse(path)
    view.wait_for_selector(".js-plotly-plot .main-svg")
    assert len(view.query_selector_all(".js-plotly-plot")) == 3
