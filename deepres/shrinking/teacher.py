"""The network as it was before it was pressed on, which teaches what is left of it (Hinton et al. 2015)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.adapters import logits_in
from deepres.training import Trainer

TEMPERATURE = 2.0
MEMORY = 0.9  # of running means, per step


class Teacher:
    """Its answers count ``weight`` against the labels as long as it has the lower loss of the two, on the batches that train.

    A network that was trained too briefly is soon outdone by what is left of it, and would hold it back from then on.
    """

    def __init__(self, trainer: Trainer, weight: float) -> None:
        self.trainer, self.weight = trainer, weight
        self.net = copy.deepcopy(trainer.model).eval()
        self.net.requires_grad_(False)
        self.lead = math.nan  # nats, running mean

    def loss(self, task: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """``task`` and, where the teacher is ahead, its answers."""
        with torch.no_grad(), self.trainer.speed.autocast(images.device):
            wanted = logits_in(self.net(images)).float()
        self._compare(logits.detach().float(), wanted, labels.flatten())
        if self.lead <= 0:
            return task
        return (1 - self.weight) * task + self.weight * distillation(logits, wanted)

    def _compare(self, logits: Tensor, wanted: Tensor, labels: Tensor) -> None:
        own, hers = (F.cross_entropy(one.flatten(0, -2), labels).double() for one in (logits, wanted))
        self.lead = running(self.lead, self.trainer.context.mean(own - hers))


def running(mean: float, value: float) -> float:
    """``mean`` with one more ``value``, which is all of it where nothing finite was before."""
    return MEMORY * mean + (1 - MEMORY) * value if math.isfinite(mean) else value


def distillation(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy to the softened answers of another network, less their entropy (Hinton et al. 2015), nats."""
    soft = F.log_softmax(wanted.flatten(0, -2) / TEMPERATURE, 1)
    own = F.log_softmax(logits.flatten(0, -2) / TEMPERATURE, 1)
    return F.kl_div(own, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
