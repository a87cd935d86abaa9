"""Deep supervision: exit heads along the network train with it, so that early signals separate the classes (Lee et al. 2015).

The heads are dropped after the run. More inputs can then exit early, and earlier, from a ghost of the network.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.adapters import find_blocks, kept_modes, logits_of, segments
from deepres.callback import Callback
from deepres.errors import DeepresError
from deepres.exits.readout import exit_targets, pooled_by_quarter, readers

if TYPE_CHECKING:
    from deepres.data import Batch
    from deepres.training import Record, Result, Trainer


class _Pool(nn.Module):
    def forward(self, signal: Tensor) -> Tensor:
        return pooled_by_quarter(signal)


def _head(reader: nn.Sequential, signal: Tensor, classes: int) -> nn.Sequential:
    """``reader``, pooling and a classifier that starts at zero."""
    with torch.no_grad():
        features = pooled_by_quarter(reader.to(signal.device).eval()(signal.float())).shape[1]
    linear = nn.Linear(features, classes)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(reader.train(), _Pool(), linear)


class DeepSupervision(Callback):
    """Callback that trains an exit head behind each segment but the last, where a ghost has its exits.

    The mean loss of the heads is added to the loss, multiplied by ``weight``. Their targets are those of ``exit_targets``; where images
    are mixed, the network's own answer alone.
    """

    name = "Exits"  # in checkpoints of the first release

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._signals: dict[int, Tensor] = {}

    def run_begins(self, trainer: Trainer) -> None:
        model, blocks = trainer.model, find_blocks(trainer.model)
        ends = [blocks[segment.blocks[-1]].sites[0].block for segment in segments(blocks)]
        if trainer.data.is_text:
            raise DeepresError(
                "exit heads classify whole inputs, and a language model answers for every token; train without --exits"
            )
        if len(ends) < 2:
            raise DeepresError("the network has too few residual blocks for early exits; train without --exits")
        self._hooks = [block.register_forward_hook(partial(self._see, c)) for c, block in enumerate(ends)]
        with kept_modes(model), torch.no_grad():
            logits_of(model.eval(), trainer.to_layout(next(trainer.loader.epoch(0)).images[:2]))
        self._hooks.pop().remove()  # there is no exit behind the last segment; its signal tells ``readers`` the final size
        classes, signals = len(trainer.data.classes), [self._signals[c] for c in range(len(ends))]
        with torch.random.fork_rng():
            torch.manual_seed(trainer.run.seed)  # the same in all processes
            self.heads = nn.ModuleList(
                [_head(reader, signal, classes) for reader, signal in zip(readers(signals), signals[:-1], strict=True)]
            )
        self.heads.to(trainer.context.device)
        self.heads.to(memory_format=trainer.speed.layout)
        self._signals.clear()
        self.optimizer = trainer.optimizer_for(self.heads)
        trainer.run_eagerly()  # a compiled step would not call the hooks

    def _see(self, c: int, _: nn.Module, __: Any, out: Any) -> None:
        self._signals[c] = out[0] if isinstance(out, tuple) else out

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        how = trainer.recipe
        own = logits.detach()
        targets = own.softmax(1) if how.mixup or how.cutmix else exit_targets(own, labels)
        with trainer.speed.autocast(images.device):
            answers = [head(self._signals[c]).float() for c, head in enumerate(self.heads)]
        self._signals.clear()
        losses = [F.cross_entropy(one, targets, label_smoothing=how.label_smoothing) for one in answers]
        return loss + self.weight * torch.stack(losses).mean()

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        self.optimizer.step()

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self._signals.clear()  # those of the validation

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._signals.clear()

    def state(self) -> dict[str, Any]:
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
