"""``look`` at signals whose channels come last."""

from __future__ import annotations

import torch
from torchvision.models import SwinTransformer

import deepres
from deepres import lens
from deepres.adapters import Observation
from deepres.lens.probes import RIDGE


def test_channels_of_a_swin_transformer_are_its_last_axis() -> None:
    """Each probe against ridge regression on the mean over places, written out."""
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 8, [2, 1], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=3).eval()
    labels = torch.arange(40) % 3
    images = torch.randn(40, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    found = lens.look(model, [(images, labels)], pairs=0)
    assert [site.kind for site in found.sites] == ["attention", "mlp"] * 3
    assert found.probes is not None and any(error > 0 for error in found.probes.error)
    for i, site in enumerate(deepres.sites(model)):
        seen: list[Observation] = []
        with site.observe(seen.append), torch.no_grad():
            model(images)
        out = seen[0].out
        assert out.shape[-1] == (8 if i < 4 else 16) and site.layout == "NHWC"
        features = torch.cat([out.mean((1, 2)), torch.ones(40, 1)], 1).double()
        x, y = features[::2], torch.nn.functional.one_hot(labels[::2], 3).double()
        gram = x.T @ x
        diagonal = gram.diagonal()[:-1]
        diagonal += RIDGE * diagonal.mean() + 1e-9 * len(x)
        answers = (features[1::2] @ torch.linalg.solve(gram, x.T @ y)).argmax(1)
        assert abs(found.probes.error[i] - 100 * float((answers != labels[1::2]).float().mean())) < 1e-4
