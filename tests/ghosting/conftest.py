"""A small trained network of digits, and a ghost of it, for all tests of ghosts."""

from pathlib import Path

import pytest
import torch

import deepres
from deepres import Run
from deepres.data import Data, open_data
from deepres.ghosting import Ghost
from deepres.ghosting.fit import fit_ghost
from deepres.ghosting.recording import batches
from deepres.training import recipe, train

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def data() -> Data:
    return open_data("digits")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """A small network that reads digits."""
    out = tmp_path_factory.mktemp("ghost") / "run"
    how = recipe("digits", epochs=5)
    train(Run("resnet26-cifar", "digits", how, str(out), speed="float32-channels-last", width=0.5), data=data, show=False)
    return out


@pytest.fixture(scope="session")
def fitted(run: Path, data: Data) -> Ghost:
    made = Ghost(deepres.load(run))
    fit_ghost(made, data, examples=300)
    return made


@pytest.fixture
def images(data: Data) -> torch.Tensor:
    return next(batches(data, "test", 48, CPU))[0]
