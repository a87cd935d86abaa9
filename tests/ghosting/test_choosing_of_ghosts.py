"""Settings of a ghost are chosen by what they are foretold, and then measured, to save and to cost."""

import dataclasses
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import deepres
from deepres.adapters import find_blocks, segments
from deepres.data import Data
from deepres.ghosting import Ghost, Point, Settings
from deepres.ghosting.candidates import frontier
from deepres.ghosting.confirm import clopper_pearson, confirmed, last_confirmed, rise_bound, verify, within_error
from deepres.ghosting.fit import Costs, block_divergences, costs
from deepres.ghosting.points import pareto_front
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches, record_signals
from deepres.ghosting.selection import fastest

CPU = torch.device("cpu")


def test_a_setting_that_is_faster_by_luck_alone_is_not_taken(fitted: Ghost, images: torch.Tensor) -> None:
    whole, *points = (Point(Settings(exit_threshold=leave), 5.0, 0.5, 1.0, 0.0) for leave in (None, 0.9, 0.8, 0.7))
    measured = {0.9: (0.93, (0.9, 1.04)), 0.8: (0.96, (0.95, 0.98)), 0.7: (0.97, (0.9, 0.99))}
    select = partial(fastest, measure=lambda made, inputs, batch: measured[made.settings.exit_threshold])
    assert select(fitted, points, whole, images, 1) is points[1] and fitted.settings == points[1].settings
    assert select(fitted, points[:1], whole, images, 1) is whole and fitted.settings.whole
    assert select(fitted, [], whole, images, 1) is whole


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
    gates = [
        Point(Settings(skip_threshold=0.0, fixed=fixed), 4.0, time, 0.9, 0.0) for fixed, time in ((True, 0.85), (False, 0.7))
    ]
    assert list(within_error([whole, fast, *gates], 5.0, 0.2)) == [(True, False, False), (False, False, True)]


def test_what_fresh_examples_do_not_confirm_is_passed_over(fitted: Ghost, data: Data) -> None:
    """Settings that look as good as the network where they were chosen, and are not."""
    bad, good = Settings(skip_threshold=1e9), Settings(skip_threshold=-1e9)  # every block is bypassed; none is
    kind = (False, False, True)
    points = {kind: [Point(settings, 0.0, time, 1.0, 0.0) for settings, time in ((bad, 0.1), (good, 0.9))]}
    held, fresh = (Passes(fitted, list(batches(data, split, 359, CPU))) for split in ("val", "test"))
    measured, said = costs(fitted, held.given[0][0][:32]), list[str]()
    found = confirmed(points, held, fresh, 1.0, measured, log=said.append)
    assert [point.settings for point in found] == [good]
    assert "0 right answers lost and 0 won of 359" in said[0] and "; not confirmed: " in said[0] and len(said) == 1
    assert confirmed(points, held, fresh, 0.3, measured) == []  # 359 examples cannot confirm as little
    assert confirmed(points, held, Passes(fitted, []), 0.3, measured)[0].settings == bad
    rows = list(batches(data, "val", 40, CPU)), list(batches(data, "val", 1000, CPU, skip=40))
    assert [sum(len(y) for _, y in part) for part in rows] == [40, len(data.val) - 40]
    assert last_confirmed([good, bad, good], fresh, 1.0) == good  # nothing behind one that fails is looked at
    assert last_confirmed([bad, good], fresh, 1.0).whole


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


@pytest.mark.parametrize(("count", "n", "bound"), [(0, 100, 0.02951), (5, 100, 0.10225), (100, 100, 1.0), (0, 1, 0.95)])
def test_the_bound_is_clopper_and_pearsons(count: int, n: int, bound: float) -> None:
    assert clopper_pearson(count, n) == pytest.approx(bound, abs=2e-5)


def test_the_test_split_is_not_held_in_memory(fitted: Ghost, data: Data) -> None:
    """Of ten batches no more are alive than the one that is made, the one that is computed and the loader's."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def given() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal most
        for x, y in batches(data, "test", 200, CPU, 20):
            alive.append(weakref.ref(x))
            most = max(most, sum(one() is not None for one in alive))
            yield x, y

    fitted.settings = Settings()
    seen = verify(fitted, given(), data.classes)
    assert seen.n == 200 and seen.rise == 0 and most <= 3
    assert seen == verify(fitted, list(batches(data, "test", 200, CPU, 20)), data.classes)
