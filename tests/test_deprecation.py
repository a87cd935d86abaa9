"""Old keyword names work for one version, with a warning."""

from __future__ import annotations

import pytest

import deepres
from deepres import DeepresError
from deepres.deprecation import renamed


def test_an_old_name_reaches_the_new_one_with_a_warning() -> None:
    @renamed(old="new")
    def double(value: int, *, new: int = 0) -> int:
        return 2 * value + new

    with pytest.warns(DeprecationWarning, match=r"double\(old=\) is now called new="):
        assert double(1, old=3) == 5  # type: ignore[call-arg]
    assert double(1, new=3) == 5
    with pytest.raises(TypeError, match="'new' and its old name 'old'"):
        double(1, new=1, old=1)  # type: ignore[call-arg]


def test_ghost_takes_watch_and_say() -> None:
    with pytest.warns(DeprecationWarning, match="progress="), pytest.raises(DeepresError, match="no such"):
        deepres.ghost("runs/none", "digits", error=1.0, watch=lambda what, share: None)  # type: ignore[call-arg]
