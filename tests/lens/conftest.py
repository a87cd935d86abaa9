"""A small trained network and its examples, for all tests of the lens."""

import pytest
import torch
from torch import nn

import deepres
from deepres import Run
from deepres.data import open_data
from deepres.lens.sample import Sample


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, Sample]:
    """A network that has learnt something, and 96 digits in three batches."""
    torch.manual_seed(0)
    run = Run("resnet20-cifar", "digits", "digits", epochs=3, width=0.5, speed="float32-channels-last")
    model = deepres.train(run, show=False).model
    data = open_data("digits")
    images, labels = data.prepare.normalise(data.val.pixels[:96]), data.val.labels[:96]
    return model, Sample.take(model, zip(images.split(40), labels.split(40), strict=True))
