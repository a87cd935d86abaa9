"""A first convolution that begins with the principal components of the images' patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepres
from deepres import DeepresError, Run
from deepres.training import recipe
from deepres.training.network import open_run
from deepres.training.whitening import whiten_first_convolution


@torch.no_grad()
def test_outputs_are_uncorrelated_and_in_pairs_of_opposite_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.avg_pool2d(torch.randn(64, 3, 24, 24, generator=generator), 3, 1) + 0.5 * torch.randn(
        64, 1, 22, 22, generator=generator
    )
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False))
    norms = net[0].weight.flatten(1).norm(dim=1)
    whiten_first_convolution(net, images)
    outputs = net(images).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(outputs[:8])
    assert (correlation - torch.eye(8)).abs().max() < 1e-4
    torch.testing.assert_close(net[0].weight[8:], -net[0].weight[:8] * (norms[8:] / norms[:8])[:, None, None, None])
    torch.testing.assert_close(net[0].weight.flatten(1).norm(dim=1), norms)
    unit = outputs[:8] / norms[:8, None]
    assert (unit.var(1).diff() <= 0).all()  # the largest variance first


@torch.no_grad()
def test_more_filters_than_components_keep_their_weights() -> None:
    net = nn.Sequential(nn.Conv2d(1, 12, 2, bias=False))  # 4 components, and their negatives
    before = net[0].weight.clone()
    whiten_first_convolution(net, torch.randn(16, 1, 8, 8))
    assert torch.equal(net[0].weight[8:], before[8:]) and not torch.equal(net[0].weight[:8], before[:8])


def test_a_network_without_a_convolution_of_the_images_is_refused() -> None:
    for net in (nn.Linear(3, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 3, 3, groups=3)):
        with pytest.raises(DeepresError, match="begin with a convolution of the images"):
            whiten_first_convolution(net, torch.randn(2, 3, 8, 8))


def test_fresh_networks_are_whitened_and_trained_ones_are_not(tmp_path: Path) -> None:
    how = recipe("digits", epochs=1, whiten=True)
    run = Run("resnet8-cifar", "digits", how, str(tmp_path / "run"), speed="exact")
    first = open_run(run).model.stem.conv.weight
    assert torch.equal(first, open_run(run).model.stem.conv.weight)
    torch.testing.assert_close(F.cosine_similarity(first[:8].flatten(1), first[8:].flatten(1)), -torch.ones(8))
    trained = deepres.train(run, show=False).model.stem.conv.weight
    again = open_run(Run("resnet8-cifar", "digits", how, init=str(tmp_path / "run"), speed="exact")).model.stem.conv.weight
    assert torch.equal(again, trained)
