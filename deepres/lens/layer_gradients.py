"""Gradient norms by layer, which show whether the gradient vanishes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import kept_modes, logits_of
from deepres.lens.gradient_split import unfrozen


@dataclass(frozen=True)
class LayerGradient:
    """One convolution or linear layer of the network, counted from the input."""

    name: str
    norm: float  # of the loss's gradient with respect to the layer's weights, Frobenius
    ratio: float  # that, against the norm of the weights themselves


def gradient_norms(model: nn.Module, images: Tensor, labels: Tensor) -> list[LayerGradient]:
    """The gradient of the mean cross-entropy on one batch, by layer, as a training step would see it.

    Batch norm uses the batch's statistics, as in training. The model is left as it was: no gradients, the same running
    statistics, the same modes of its modules. The gradient of a frozen layer is what it would be if it were not frozen.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with kept_modes(model), unfrozen(model):
        model.train()
        for norm in norms:
            norm.track_running_stats = False
        try:
            with torch.enable_grad():
                loss = F.cross_entropy(logits_of(model, images).float(), labels)
                grads = torch.autograd.grad(loss, [m.weight for _, m in layers])
        finally:
            for norm in norms:
                norm.track_running_stats = True
    sizes = torch.stack([g.norm() for g in grads]).tolist()
    weights = torch.stack([m.weight.detach().norm() for _, m in layers]).tolist()
    return [
        LayerGradient(name, size, size / max(weight, 1e-12))
        for (name, _), size, weight in zip(layers, sizes, weights, strict=True)
    ]
