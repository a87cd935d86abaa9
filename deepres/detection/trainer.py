"""The state of a detector's run, and one step of it. `training` is the loop around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from deepres.data import seeded
from deepres.data.detection import BoxData, BoxExample
from deepres.detection.batches import BoxBatch, BoxLoader, resized_side
from deepres.detection.faster_rcnn import Detector
from deepres.detection.measure import DetectionScores, measure_detector
from deepres.detection.recipe import DetectRecipe
from deepres.detection.run import DetectRun
from deepres.detection.store import load_detector, save_detector
from deepres.errors import DeepresError, first_line
from deepres.training import checkpoint
from deepres.training.distribute import DistributedContext
from deepres.training.fusion import accelerate, undo_acceleration
from deepres.training.guard import NonFinite
from deepres.training.speed import SPEEDS, Speed
from deepres.training.trainer import BEST

STRIDE = 32  # sides of padded images are multiples of it
WASTE = 1.3  # padding that a canvas for all images may add to the area of the images


@dataclasses.dataclass
class DetectProgress:
    """Position of a run."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the present epoch
    done: int = 0  # finished steps in all
    seconds: float = 0.0  # of training, validation included
    best: float = -1.0  # highest AP at IoU 0.5 on the validation images so far
    best_epoch: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # losses of the epoch so far, by name


def usual_speed(device: torch.device) -> Speed:
    """bf16 in channels-last memory where the processor computes it, else float32 in channels-last memory."""
    able = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    return SPEEDS["bf16-channels-last" if able else "float32-channels-last"]


def common_canvas(data: BoxData, size: int, longest: int) -> tuple[int, int] | None:
    """(height, width) that all resized images can be padded to; None where that would add more than ``WASTE`` to their area."""
    sides = [resized_side(one.size, size, longest) for split in (data.train, data.val, data.test) for one in split]
    padded = [tuple(-(-side // STRIDE) * STRIDE for side in pair) for pair in sides]
    canvas = (max(tall for tall, _ in padded), max(wide for _, wide in padded))
    mean = sum(tall * wide for tall, wide in padded) / len(padded)
    return canvas if canvas[0] * canvas[1] <= WASTE * mean else None


class DetectTrainer:
    """A detector, its optimizer, its data and its progress."""

    def __init__(self, run: DetectRun, data: BoxData, context: DistributedContext, model: Detector) -> None:
        assert isinstance(run.recipe, DetectRecipe)
        self.run, self.data, self.context, self.recipe = run, data, context, run.recipe
        self.out = Path(run.out) if run.out else None
        self.speed = usual_speed(context.device) if run.speed == "auto" else SPEEDS[run.speed]
        self.model = model.to(context.device).to(memory_format=self.speed.layout)
        config = model.config
        self.loader = BoxLoader(
            data.train, self.recipe, (config.size, config.longest), seed=run.seed, share=context.shard, workers=run.workers
        )
        if self.loader.batch < context.world:
            raise DeepresError(f"--batch {self.loader.batch} is less than one image for each of {context.world} processes")
        self.total = self.recipe.steps(self.loader.steps)
        self.progress = DetectProgress()
        # norms that are trained keep the signals in bounds at any rate
        self.optimizer = optimizer_of(model, self.recipe, model.of_net if config.frozen else ())
        self.averaged: AveragedModel | None = None
        if self.recipe.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=rising_average(self.recipe.ema), use_buffers=True)
        self._best: dict[str, Tensor] | None = None
        if self.speed.fused:
            accelerate(self.model)
        if self.speed.compile:
            self.model.backbone.compile()
        self.forward: nn.Module = self.model
        if context.world > 1:
            ids = [context.device.index] if context.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.model, device_ids=ids)

    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.recipe.rate(self.progress.done / self.total)

    def take_step(self, batch: BoxBatch) -> None:
        """Train on one batch, of which this process has its share.

        Raises ``NonFinite`` before the weights are changed by a loss or a gradient that is not finite.
        """
        progress, context = self.progress, self.context
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)  # older checkpoints have no shares
        # the regions that are learned from are drawn at random; seed and step alone decide which
        torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(self.run.seed, 5, progress.done, context.rank))))
        images = [image.to(context.device) for image in batch.images]
        targets = [{key: value.to(context.device) for key, value in target.items()} for target in batch.targets]
        with self.speed.autocast(context.device):
            losses = self.forward(images, targets)
        loss = sum(losses.values())
        assert isinstance(loss, Tensor)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, norm)
        numbers = torch.stack([*(value.detach() for value in losses.values()), norm]).double()
        values = (context.sum(numbers) / context.world).tolist()
        if not math.isfinite(sum(values)):
            named = dict(zip([*losses, "gradient norm"], values, strict=True))
            bad = ", ".join(name for name, value in named.items() if not math.isfinite(value))
            raise NonFinite(
                f"training stopped before step {progress.done + 1}: {bad} is not finite; lower --lr (now {rate:g}), or look at the data"
            )
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        for name, value in zip([*losses, "gradient_norm"], values, strict=True):
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.step += 1
        progress.done += 1

    def deploy(self) -> Detector:
        """The weights to test and to keep: the averaged ones where there are some."""
        return self.averaged.module if self.averaged is not None else self.model  # type: ignore[return-value]

    def measure(self, examples: tuple[BoxExample, ...]) -> DetectionScores:
        """Evaluate ``deploy()`` in the precision that the run trains in."""
        batch = max(1, self.recipe.batch)
        return measure_detector(self.deploy(), examples, self.data.classes, batch=batch, speed=self.speed, context=self.context)

    def keep_best(self) -> None:
        """Keep the weights as the best epoch's: in the run's folder, or in memory."""
        if not self.context.is_main:
            return
        if self.out is not None:
            save_detector(self.deploy(), self.out / BEST, data=self.run.data, epoch=self.progress.best_epoch)
        else:
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.deploy().state_dict().items()}

    def load_best(self) -> Detector:
        """``deploy()`` with the weights of the best epoch, the same in all processes, and with ordinary modules."""
        final: Detector = undo_acceleration(self.deploy())  # type: ignore[assignment]
        if self._best is not None:
            final.load_state_dict(self._best)
        elif self.out is not None and self.context.is_main and (self.out / BEST).exists():
            final.load_state_dict(load_detector(self.out / BEST).state_dict())
        self.context.broadcast_weights(final)
        return final

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "progress": dataclasses.asdict(self.progress),
            "best": self._best,
            "speed": self.speed.name,
            "data": self._data(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ``DeepresError`` where the data or the network are not those of the checkpoint."""
        if state["data"] != self._data():
            raise DeepresError(
                f"{self.run.data}: the data have changed since the run in {self.out} began; a run goes on with the same data only: "
                "train anew into another --out"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.progress = DetectProgress(**state["progress"])
            self._best = state["best"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DeepresError(f"{self.out}: the checkpoint there is of another run ({first_line(error)})") from error

    def checkpoint(self) -> None:
        """Write a checkpoint, in the main process of a run that has a folder."""
        if self.out is not None and self.context.is_main:
            checkpoint.write(self.out / checkpoint.FOLDER, self.progress.done, self.state(), self.run.keep)

    def _data(self) -> dict[str, Any]:
        """What must not change between a run and its resume."""
        return {"classes": list(self.data.classes), "train": len(self.data.train), "val": len(self.data.val)}


def rising_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average whose decay rises to ``decay``, so that the first weights, which are random, soon count for nothing."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:  # how many batches norms have seen
            torch._foreach_copy_(averaged, current)

    return update


def optimizer_of(model: nn.Module, recipe: DetectRecipe, pretrained: Collection[str] = ()) -> torch.optim.Optimizer:
    """The recipe's optimizer for what is trained in ``model``; weights of one dimension, norms' and biases', do not decay.

    ``pretrained``: names of parameters that learn at the recipe's ``pretrained_rate``. A group's ``share`` is its part of the
    learning rate.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault((p.ndim > 1, name in pretrained), []).append(p)
    options = [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "share": recipe.pretrained_rate if slow else 1.0,
        }
        for (decays, slow), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(options, recipe.lr, fused=True)
    return torch.optim.SGD(options, recipe.lr, recipe.momentum, fused=True)
