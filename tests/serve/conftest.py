"""A ghost to serve, and a server that the tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Server, start

import deepres
from deepres.data import open_data
from deepres.ghosting import Ghost, GhostResult, Settings, save_ghost
from deepres.ghosting.confirm import Verified
from deepres.ghosting.fit import fit_ghost
from deepres.ghosting.points import Point


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ghost; what it answers is no matter here."""
    data = open_data("digits")
    made = Ghost(deepres.create("resnet20-cifar", in_channels=1, width=0.5))
    fit_ghost(made, data, examples=64)
    point, faster = Point(Settings(), 10.0, 1.0, 1.0, 0.0), Point(Settings(0.0, 0.1), 20.0, 0.5, 0.5, 0.5)
    seen = Verified(1, 10.0, 10.0, 0, 0, 1.0, 1.0, 0.0, 0.0, {}, (), (), ())
    return save_ghost(
        GhostResult(made, point, (point, faster), 10.0, seen, {}, None, data), tmp_path_factory.mktemp("serve") / "ghost"
    )


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[Server]:
    one = start(model, "--pixels", "1", "--body", "0.5", "--engine", "none")
    yield one
    one.process.kill()
    one.process.communicate()
