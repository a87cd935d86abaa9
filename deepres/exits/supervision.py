"""Deep supervision: exits along the network learn with it, so that its signal can be read early (Lee et al. 2015).

The exits themselves are dropped with the run. What stays is a network whose earlier blocks already tell the classes apart, which
``deepres.ghost`` fits exits to that let more inputs leave, and leave earlier.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import find_blocks, logits_of, segments
from deepres.callback import Callback
from deepres.errors import DeepresError
from deepres.exits.readout import learnt, pooled_by_quarter, readers

if TYPE_CHECKING:
    from deepres.data import Batch
    from deepres.training import Record, Result, Trainer


class _Pool(nn.Module):
    def forward(self, signal: Tensor) -> Tensor:
        return pooled_by_quarter(signal)


def _head(reader: nn.Sequential, signal: Tensor, classes: int) -> nn.Sequential:
    """What reads the signal, and a classifier, which begins with no answer at all."""
    with torch.no_grad():
        features = pooled_by_quarter(reader.to(signal.device).eval()(signal.float())).shape[1]
    linear = nn.Linear(features, classes)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(reader.train(), _Pool(), linear)


class Exits(Callback):
    """An early exit behind each segment of blocks but the last, at the places and of the kind that a ghost has its own.

    Each learns the labels and, half by half, the network's own answer (Zhang et al. 2019); their mean loss counts ``weight``
    times. Where images are mixed, the network's answer alone.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._signals: dict[int, Tensor] = {}

    def run_begins(self, trainer: Trainer) -> None:
        model, units = trainer.model, find_blocks(trainer.model)
        ends = [units[segment.units[-1]].sites[0].block for segment in segments(units)]
        if trainer.data.is_text:
            raise DeepresError("exits answer for whole inputs, and a language model for every token; train without --exits")
        if len(ends) < 2:
            raise DeepresError("the network has too few residual blocks for exits; train without --exits")
        self._hooks = [block.register_forward_hook(partial(self._see, c)) for c, block in enumerate(ends)]
        was = model.training
        with torch.no_grad():
            logits_of(model.eval(), trainer.to_layout(next(trainer.loader.epoch(0)).images[:2]))
        model.train(was)
        self._hooks.pop().remove()  # the last signal's size tells what lies ahead of an exit, and has none itself
        classes, signals = len(trainer.data.classes), [self._signals[c] for c in range(len(ends))]
        with torch.random.fork_rng():
            torch.manual_seed(trainer.run.seed)  # in every process alike
            self.heads = nn.ModuleList(
                [_head(reader, signal, classes) for reader, signal in zip(readers(signals), signals[:-1], strict=True)]
            )
        self.heads.to(trainer.context.device)
        self.heads.to(memory_format=trainer.speed.layout)
        self._signals.clear()
        self.optimizer = trainer.optimizer_for(self.heads)
        trainer.run_eagerly()  # what hooks keep is not compiled

    def _see(self, c: int, _: nn.Module, __: Any, out: Any) -> None:
        self._signals[c] = out[0] if isinstance(out, tuple) else out

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        how = trainer.recipe
        own = logits.detach()
        wanted = own.softmax(1) if how.mixup or how.cutmix else learnt(own, labels)
        with trainer.speed.autocast(images.device):
            answers = [head(self._signals[c]).float() for c, head in enumerate(self.heads)]
        self._signals.clear()
        losses = [F.cross_entropy(one, wanted, label_smoothing=how.label_smoothing) for one in answers]
        return loss + self.weight * torch.stack(losses).mean()

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        self.optimizer.step()

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self._signals.clear()  # of the validation

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._signals.clear()

    def state(self) -> dict[str, Any]:
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
