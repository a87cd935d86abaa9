"""Distillation from the network as it was given (Hinton et al. 2015)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.adapters import logits_in
from deepres.training import Trainer

TEMPERATURE = 2.0
DECAY = 0.9  # of running means, per step


class Teacher:
    """A frozen copy of the network, whose answers have ``weight`` in the loss while its own loss is the lower one.

    Both losses are running means over the training batches. A teacher that has become worse than the network would hold it back.
    """

    def __init__(self, trainer: Trainer, weight: float) -> None:
        self.trainer, self.weight = trainer, weight
        self.net = copy.deepcopy(trainer.model).eval()
        self.net.requires_grad_(False)
        self.lead = math.nan  # loss of the network minus loss of the teacher, running mean, nats

    def loss(self, task: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """``task``, the loss against the labels, mixed with the distillation loss while the teacher leads."""
        with torch.no_grad(), self.trainer.speed.autocast(images.device):
            taught = logits_in(self.net(images)).float()
        self._compare(logits.detach().float(), taught, labels.flatten())
        if self.lead <= 0:
            return task
        return (1 - self.weight) * task + self.weight * distillation(logits, taught)

    def _compare(self, logits: Tensor, taught: Tensor, labels: Tensor) -> None:
        own, teacher = (F.cross_entropy(one.flatten(0, -2), labels).double() for one in (logits, taught))
        self.lead = running_mean(self.lead, self.trainer.context.mean(own - teacher))


def running_mean(mean: float, value: float) -> float:
    """Update an exponential moving average with ``value``; a ``mean`` that is not finite starts anew."""
    return DECAY * mean + (1 - DECAY) * value if math.isfinite(mean) else value


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence to the softened answers ``taught`` of a teacher (Hinton et al. 2015), nats.

    Both are logits ``(N, K)`` or ``(N, L, K)``.
    """
    soft = F.log_softmax(taught.flatten(0, -2) / TEMPERATURE, 1)
    own = F.log_softmax(logits.flatten(0, -2) / TEMPERATURE, 1)
    return F.kl_div(own, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
