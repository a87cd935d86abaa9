"""Old keyword names work for one version, with a warning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

import deepres
from deepres import DeepresError
from deepres.deprecation import renamed, renamed_fields
from deepres.ghosting import Point, Settings
from deepres.shrinking import ShrinkSchedule, Target


def test_an_old_name_reaches_the_new_one_with_a_warning() -> None:
    @renamed(old="new")
    def double(value: int, *, new: int = 0) -> int:
        return 2 * value + new

    with pytest.warns(DeprecationWarning, match=r"double\(old=\) is now called new="):
        assert double(1, old=3) == 5  # type: ignore[call-arg]
    assert double(1, new=3) == 5
    with pytest.raises(TypeError, match="'new' and its old name 'old'"):
        double(1, new=1, old=1)  # type: ignore[call-arg]


def test_fields_of_a_dataclass_have_their_old_names_too() -> None:
    @renamed_fields(old="new")
    @dataclass
    class Pair:
        new: int
        other: int = 0

    with pytest.warns(DeprecationWarning, match=r"Pair\(old=\) is now called new="):
        pair = Pair(old=3)  # type: ignore[call-arg]
    assert replace(pair, other=1) == Pair(3, 1)
    with pytest.warns(DeprecationWarning, match=r"Pair\.old is now called new"):
        assert pair.old == 3  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match=r"Pair\.old is now called new"):
        pair.old = 4  # type: ignore[attr-defined]
    assert pair == Pair(4)


def test_ghost_takes_watch_and_say() -> None:
    with pytest.warns(DeprecationWarning, match="progress="), pytest.raises(DeepresError, match="no such"):
        deepres.ghost("runs/none", "digits", error=1.0, watch=lambda what, share: None)  # type: ignore[call-arg]


def test_shrink_takes_press_and_say() -> None:
    with pytest.warns(DeprecationWarning, match="constrain="), pytest.raises(DeepresError, match="did you mean"):
        deepres.shrink("resnet20-cifer", "digits", press=0.5)
    with pytest.warns(DeprecationWarning, match="log="), pytest.raises(DeepresError, match="did you mean"):
        deepres.shrink("resnet20-cifer", "digits", say=print)


@pytest.mark.parametrize(
    ("old", "now", "names"),
    [
        (
            lambda: Point(Settings(), 1.0, 0.5, 0.5, left=0.2),
            Point(Settings(), 1.0, 0.5, 0.5, 0.2),
            {"left": 0.2, "moved": 0.0},
        ),
        (lambda: Settings(skip=0.1, leave=0.9, sure=0.4, mean=True), Settings(0.1, 0.9, 0.4, average=True), {"leave": 0.9}),
        (lambda: Target(what="time", value=0.5), Target("time", 0.5), {"what": "time"}),
        (
            lambda: ShrinkSchedule(Target("time", 0.5), 0.1, press=0.3),
            ShrinkSchedule(Target("time", 0.5), 0.1, 0.3),
            {"press": 0.3},
        ),
    ],
)
def test_records_have_their_old_names(old: Callable[[], object], now: object, names: dict[str, object]) -> None:
    with pytest.warns(DeprecationWarning, match="is now called"):
        assert old() == now
    for name, value in names.items():
        with pytest.warns(DeprecationWarning, match=f"{type(now).__name__}.{name} is now called"):
            assert getattr(now, name) == value
