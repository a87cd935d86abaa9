"""A run under way: the network, its optimizer, and where it is in its epochs; one step, one epoch, one checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deepres.adapters import logits_in
from deepres.data import Augment, Batch, Data, Loader, Resident, mix, seeded
from deepres.errors import DeepresError
from deepres.evaluation import Evaluation, measure
from deepres.models import load_weights, open_model, output_classes, read, save
from deepres.models.store import locate
from deepres.nn import create
from deepres.training import checkpoint, memory
from deepres.training.distribute import DistributedContext, synchronise_norms
from deepres.training.guard import NonFinite, first_non_finite
from deepres.training.optimizer import KEPT, optimizer_for, set_rate
from deepres.training.progress import Record, Reporter, peak_memory
from deepres.training.recipe import Recipe
from deepres.training.run import Run, parse_bytes
from deepres.training.speed import SPEEDS, Speed, choose

# called before a step with (network, images, labels, optimizer, steps behind, steps an epoch)
Tap = Callable[[nn.Module, Tensor, Tensor, torch.optim.Optimizer, int, int], None]


class Curriculum(Protocol):
    """What a method asks of a run beyond its recipe: terms in the loss, and changes to the network while it trains.

    ``state`` goes into the checkpoints; ``restore`` is called with it before the weights are loaded, and has to bring the network
    to the shape that it had then (with ``Trainer.rebuild`` behind it).
    """

    def begin(self, trainer: Trainer) -> None: ...
    def loss(self, task: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor: ...
    def stepped(self) -> None: ...
    def epoch(self, record: Record) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Interrupted(DeepresError):
    """Ctrl-C or SIGTERM: the run has been saved and can be resumed."""

    exit_code = 1


@dataclass
class Progress:
    """Where a run is; with the weights and the optimizer this is all that a checkpoint holds."""

    epoch: int = 0
    step: int = 0  # inside the epoch
    done: int = 0  # in all
    seconds: float = 0.0
    best: float = math.inf
    best_epoch: int = 0
    since_best: int = 0  # epochs, for the plateau schedule
    factor: float = 1.0  # of the rate, after plateaus
    gentle: bool = False  # still warming up by the paper's rule
    # sums over the epoch so far: loss, wrong, examples, gradient norm, steps
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)


def training_model(run: Run, data: Data, device: torch.device) -> nn.Module:
    """The network of a run, freshly initialised from its seed, or from ``run.init``."""
    torch.manual_seed(run.seed)
    if ":" in run.net or Path(run.net).exists():
        other, _ = open_model(run.net, weights=run.init, classes=len(data.classes), channels=data.prepare.channels or None)
        if output_classes(other) not in (None, len(data.classes)):
            raise DeepresError(
                f"{run.net}: tells {output_classes(other)} classes apart and {data.name} has {len(data.classes)}"
            )
        longest = getattr(getattr(other, "config", None), "max_position_embeddings", None)
        if data.is_text and longest is not None and longest < data.prepare.size:
            raise DeepresError(f"{run.net}: reads at most {longest} characters at a time; give --size {longest} or less")
        return other.to(device)
    if data.is_text:
        raise DeepresError(f"{run.net}: takes images and {data.name} is a text; give a language model, such as hf:FOLDER")
    options = {"in_channels": data.prepare.channels, "num_classes": len(data.classes), **run.options}
    model = create(run.net, width=run.width, **options)
    if run.init:
        tensors, _ = read(locate(run.init))
        report = load_weights(model, tensors, strict=False)
        body = [name for name in (*report.missing, *(s.split(":")[0] for s in report.shapes)) if not name.startswith("head.")]
        if body:
            raise DeepresError(f"{run.init}: does not hold the weights of a {run.net}: {report}")
    return model.to(device)


class Trainer:
    """A run under way: the network, its optimizer, and where it is. ``train`` is the way in."""

    def __init__(self, run: Run, data: Data, context: DistributedContext, model: nn.Module | None = None) -> None:
        assert isinstance(run.recipe, Recipe)
        if run.recipe.pixel_mean:
            data = data.centred_by_pixel()
        self.run, self.data, self.context, self.recipe = run, data, context, run.recipe
        self.out = Path(run.out) if run.out else None
        self.tap: Tap | None = None
        self.curriculum: Curriculum | None = None
        self.model = (model if model is not None else training_model(run, data, context.device)).to(context.device)
        self.progress = Progress(gentle=self._starts_gently())
        self.loader = Loader(
            data.train,
            data.prepare,
            self.recipe.batch,
            seed=run.seed,
            augment=self._augment(),
            colour=self.recipe.colour,
            device=context.device,
            share=context.shard,
            workers=run.workers,
        )
        self.total = self.recipe.steps(self.loader.steps)
        limit = None if run.memory in ("auto", "all") else parse_bytes(run.memory)
        self.plan = memory.Plan()
        if run.memory != "all" and not data.is_text:
            rows = -(-self.loader.batch // context.world)
            bf16 = run.speed not in ("exact", "auto") and SPEEDS[run.speed].bf16
            kept = KEPT[self.recipe.optimizer]
            self.plan = memory.fit(self.model, data.shape, rows, context.device, limit=limit, bf16=bf16, kept=kept)
        self.speed = self._speed()
        self.model.to(memory_format=self.speed.layout)
        if run.sync_norm and context.world > 1:
            self.model = synchronise_norms(self.model, context.device)
        self.optimizer: torch.optim.Optimizer = None  # type: ignore[assignment]
        self.rebuild()

    def rebuild(self) -> None:
        """Make what is made of the network's weights: optimizer, averages, wrappers. Again after blocks were taken out.

        Momentum goes on for the weights that stayed.
        """
        context = self.context
        before = self.optimizer.state if self.optimizer is not None else {}
        self.optimizer = optimizer_for(self.model, self.recipe)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in before:
                    self.optimizer.state[parameter] = before[parameter]
        drops = getattr(getattr(self.model, "config", None), "survival", 1.0) < 1
        # gradients made anew in each backward pass would lie between the activations and keep the heap from shrinking; and a
        # branch that a step leaves out has a gradient of zero, not none
        self.keeps_gradients = drops or bool(self.plan.length)
        if self.keeps_gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.averaged: AveragedModel | None = None
        if self.recipe.ema:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema), use_buffers=True)
        wrapped: nn.Module = self.model
        if context.world > 1:
            ids = [context.device.index] if context.device.type == "cuda" else None
            wrapped = DistributedDataParallel(self.model, device_ids=ids, find_unused_parameters=drops)
        self.eager = wrapped
        self.forward = torch.compile(wrapped) if self.speed.compile else wrapped

    def _starts_gently(self) -> bool:
        config = getattr(self.model, "config", None)
        return bool(self.recipe.gentle_depth) and config is not None and config.depth >= self.recipe.gentle_depth

    def _augment(self) -> Augment:
        """Crops of large views make no sense of small images kept at one size, nor the other way round."""
        if self.data.is_text:
            return "none"
        if isinstance(self.data.train, Resident):
            return "pad-crop-flip" if self.recipe.augment in ("scale-crop", "random-resized-crop") else self.recipe.augment
        return "random-resized-crop" if self.recipe.augment.startswith("pad-crop") else self.recipe.augment

    def _speed(self) -> Speed:
        if self.run.speed != "auto":
            return SPEEDS[self.run.speed]
        rows = -(-self.loader.batch // self.context.world)
        images = self.data.prepare.example(rows, seeded(0)).to(self.context.device)
        labels = torch.arange(images.numel() if self.data.is_text else rows, device=self.context.device) % len(
            self.data.classes
        )
        names = list(SPEEDS)
        with self.heap():
            chosen = choose(self.model, images, labels, self.total)
        index = torch.tensor(names.index(chosen.name) if self.context.rank == 0 else 0, device=self.context.device)
        return SPEEDS[names[int(self.context.sum(index))]]  # the first process chooses for all

    def heap(self) -> AbstractContextManager[None]:
        """Freed memory kept for the next step, on a CPU, unless memory is short and blocks are recomputed for it."""
        kept = self.context.device.type == "cpu" and not self.plan.length
        return memory.heap_kept() if kept else contextlib.nullcontext()

    # ---- one step

    def loss(self, batch: Batch, forward: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(mean loss over the local part, logits, images as the network saw them)."""
        images, targets = batch.images, batch.labels
        if self.recipe.mixup or self.recipe.cutmix:
            generator = seeded(self.run.seed, 4, self.progress.done, self.context.rank)
            hot = F.one_hot(targets, len(self.data.classes)).float()
            images, targets = mix(images, hot, generator, mixup=self.recipe.mixup, cutmix=self.recipe.cutmix)
        images = self.to_layout(images)
        with self.speed.autocast(self.context.device):
            logits = logits_in(forward(images)).float()
        rows = logits.flatten(0, -2)  # every token of a language model is an answer of its own
        hard = targets.flatten() if not targets.is_floating_point() else targets
        return F.cross_entropy(rows, hard, label_smoothing=self.recipe.label_smoothing), logits, images

    def to_layout(self, images: Tensor) -> Tensor:
        """In the memory layout that the network runs in; tokens have none."""
        return images.to(memory_format=self.speed.layout) if images.ndim == 4 else images

    def rate(self) -> float:
        rate = self.recipe.rate(self.progress.done / self.total) * self.progress.factor
        return min(rate, self.recipe.lr / 10) if self.progress.gentle else rate

    def step(self, batch: Batch) -> None:
        """Forward, backward, check, update."""
        # what a network draws itself (dropout, ...) depends on the seed and the step alone
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=seeded(self.run.seed, 5, self.progress.done, self.context.rank)))
        )
        set_rate(self.optimizer, self.rate(), self.recipe.momentum_at(self.progress.done / self.total))
        if self.tap is not None:
            self.tap(
                self.model, self.to_layout(batch.images), batch.labels, self.optimizer, self.progress.done, self.loader.steps
            )
        task, logits, images = self.loss(batch, self.forward if batch.full else self.eager)
        loss = task if self.curriculum is None else self.curriculum.loss(task, logits, images, batch.labels)
        # DDP averages over processes; the parts of a batch may differ by an example
        weight = len(batch.labels) * self.context.world / batch.total
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        (loss * weight if weight != 1 else loss).backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, norm)
        answers = batch.labels.numel() / max(len(batch.labels), 1)  # tokens of an example
        wrong = (logits.detach().argmax(-1) != batch.labels).sum() / answers
        numbers = torch.stack((task.detach() * len(batch.labels), wrong.to(task.dtype), norm.to(task.dtype))).double()
        self.context.sum(numbers)
        total_loss, total_wrong, total_norm = numbers.tolist()  # the one wait for the device
        if not math.isfinite(total_loss + total_norm):
            self._explain(batch)
        self.optimizer.step()
        if self.curriculum is not None:
            self.curriculum.stepped()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        added = (total_loss, total_wrong, batch.total, total_norm / self.context.world, 1)
        self.progress.sums = [a + b for a, b in zip(self.progress.sums, added, strict=True)]
        self.progress.step += 1
        self.progress.done += 1
        if self.progress.gentle and self.progress.step % 20 == 0:
            self.progress.gentle = self.progress.sums[1] / self.progress.sums[2] > 0.8

    def _explain(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        where = first_non_finite(self.model, lambda: self.loss(batch, self.model)[0])
        raise NonFinite(
            f"training stopped before step {self.progress.done + 1}: the loss or its gradient is not finite; {where}; "
            f"lower --lr (now {self.rate():g}), or look at the data"
        )

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
            "progress": dataclasses.asdict(self.progress),
            "speed": self.speed.name,
            "curriculum": self.curriculum.state() if self.curriculum is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        try:
            if self.curriculum is not None:
                self.curriculum.restore(state["curriculum"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DeepresError(f"{self.out}: the checkpoint there is of another run ({str(error).splitlines()[0]})") from error

    def checkpoint(self) -> None:
        if self.out is not None and self.context.is_main:
            checkpoint.write(self.out / checkpoint.FOLDER, self.progress.done, self.state(), self.run.keep)

    def deploy(self) -> nn.Module:
        """The weights to test and to keep: the averaged ones where there are some."""
        return self.averaged.module if self.averaged is not None else self.model

    def keep_weights(self, name: str) -> None:
        if self.out is None or not self.context.is_main:
            return
        notes = {"classes": list(self.data.classes), "prepare": self.data.prepare.to_notes(), "data": self.run.data}
        save(self.deploy(), self.out / name, **notes)

    # ---- epochs

    def measure(self, split: str) -> Evaluation:
        """In the mode that the run trains in."""
        return measure(
            self.deploy(),
            getattr(self.data, split),
            self.data.prepare,
            self.data.classes,
            batch=max(self.recipe.batch, 250),
            device=self.context.device,
            layout=self.speed.layout,
            autocast=self.speed.autocast(self.context.device),
            share=self.context.shard,
            workers=self.run.workers,
        )

    def train_epoch(self, reporter: Reporter, stop: threading.Event) -> None:
        """From where the run is to the end of the epoch, or of the run."""
        progress = self.progress
        saved = began = time.perf_counter()
        waited, earlier, first = self.loader.waited, progress.seconds, progress.step
        side = self.recipe.side(progress.done / self.total, self.data.prepare.size)
        self.model.train()
        for batch in self.loader.epoch(progress.epoch, progress.step, side):
            self.step(batch)
            now = time.perf_counter()
            progress.seconds = earlier + now - began
            steps = progress.step - first
            rate = steps * self.recipe.batch / (now - began)
            reporter.step(progress.done, rate, (self.loader.waited - waited) / (now - began), peak_memory(self.context.device))
            asked = torch.tensor(int(stop.is_set()), device=self.context.device)
            if self.context.sum(asked):
                self.checkpoint()
                self.context.barrier()
                how = f"resume with --resume {self.out}" if self.out else "it had no folder, so nothing was saved"
                raise Interrupted(f"interrupted after step {progress.done} of {self.total}; {how}")
            if now - saved > 60 * self.run.checkpoint_minutes:
                self.checkpoint()
                saved = time.perf_counter()
            if progress.done >= self.total:
                break

    def finish_epoch(self, reporter: Reporter, speed: float, waited: float) -> Record:
        """Validate, log, keep the best weights, checkpoint."""
        progress = self.progress
        loss, wrong, count, norm, steps = progress.sums
        began = time.perf_counter()
        val = self.measure("val")
        test = self.measure("test").top1 if self.run.watch_test else None
        record = Record(
            epoch=progress.epoch + 1,
            step=progress.done,
            lr=self.optimizer.param_groups[0]["lr"],
            loss=loss / count,
            train_error=100 * wrong / count,
            val_error=val.top1,
            grad_norm=norm / steps,
            images_per_second=speed,
            waited=waited,
            memory=peak_memory(self.context.device),
            seconds=progress.seconds + time.perf_counter() - began,
            test_error=test,
            unreadable=self.loader.unreadable,
        )
        if progress.gentle:
            progress.gentle = record.train_error > 80
        if val.top1 < progress.best:
            progress.best, progress.best_epoch, progress.since_best = val.top1, record.epoch, 0
            self.keep_weights("best.safetensors")
        else:
            progress.since_best += 1
            if self.recipe.schedule == "plateau" and progress.since_best > self.recipe.patience:
                progress.factor, progress.since_best = progress.factor / 10, 0
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, [0.0] * 5
        progress.seconds = record.seconds
        if self.context.is_main:
            reporter.epoch(record)
        if self.curriculum is not None:
            self.curriculum.epoch(record)
        self.checkpoint()
        return record
