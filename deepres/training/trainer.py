"""The state of a run: network, optimizer, data and progress. `step`, `epoch` and `checkpoint` act on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deepres import kernels
from deepres.callback import Callback
from deepres.data import Augment, Batch, Data, Loader, Resident, digest, seeded
from deepres.data.options import parse_bytes
from deepres.errors import DeepresError
from deepres.evaluation import Evaluation, measure
from deepres.kernels.compiling import compiled_for_training
from deepres.models import read_checkpoint, save
from deepres.nn import ResNet
from deepres.training import checkpoint, memory
from deepres.training.distribute import DistributedContext
from deepres.training.fusion import accelerate
from deepres.training.heap import heap_kept
from deepres.training.network import open_run
from deepres.training.optimizer import KEPT, SideOptimizer, optimizer_for
from deepres.training.progress import Pace, Progress
from deepres.training.recipes import Recipe
from deepres.training.run import Run
from deepres.training.speed import SPEEDS, Speed
from deepres.training.speed_trial import choose
from deepres.training.step import take_step
from deepres.training.sync_norm import synchronise_norms

BEST, LAST = "best.safetensors", "last.safetensors"


class Trainer:
    """A run under way, made by ``train`` and given to its callbacks.

    What callbacks read: ``run``, ``recipe``, ``data``, ``loader``, ``context``, ``out``, ``model`` (never wrapped), ``optimizer``,
    ``averaged`` (the averaged weights, or ``None``), ``progress``, ``pace``, ``speed`` and ``total``, the number of steps.
    What they call: ``replace_model``, ``run_eagerly``, ``optimizer_for``, ``measure``, ``to_layout``, ``rate`` and ``deploy``.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        context: DistributedContext,
        model: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        assert isinstance(run.recipe, Recipe), "`train` resolves the recipe 'auto'"
        if model is None:
            opened = open_run(run, data)
            model, data = opened.model, opened.data
        if run.recipe.pixel_mean:
            data = data.centred_by_pixel()
        self.run, self.data, self.context, self.recipe = run, data, context, run.recipe
        self.callbacks = list(callbacks)
        self._check_callbacks()
        self.out = Path(run.out) if run.out else None
        self.examples = digest(data) if self.out else {}  # what checkpoints say of the data
        self.model = model.to(context.device)
        self.progress, self.pace = Progress(gentle=self._starts_gently()), Pace()
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
        if limit is not None and data.is_text:
            raise DeepresError(
                f"--memory {run.memory}: no blocks of a language model are recomputed, so its memory cannot be limited; leave the option "
                "out, or lower --batch or --size"
            )
        self.plan = memory.RecomputePlan()
        if context.device.type == "cpu" and run.speed in SPEEDS and SPEEDS[run.speed].fused:
            accelerate(self.model)  # so that its memory is measured
        if run.memory != "all" and not data.is_text:
            rows = -(-self.loader.batch // context.world)
            bf16 = run.speed not in ("exact", "auto") and SPEEDS[run.speed].bf16
            kept = KEPT[self.recipe.optimizer]
            self.plan = memory.fit_memory(self.model, data.shape, rows, context.device, limit=limit, bf16=bf16, kept=kept)
        self.speed = self._speed()
        self.model.to(memory_format=self.speed.layout)
        if run.sync_norm and context.world > 1:
            self.model = synchronise_norms(self.model, context.device)
        self.optimizer: torch.optim.Optimizer = None  # type: ignore[assignment]
        self._best: dict[str, Tensor] | None = None  # weights of the best epoch of a run without a folder
        self._build()

    def _check_callbacks(self) -> None:
        names = [callback.name for callback in self.callbacks if callback.keeps_state]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DeepresError(f"two callbacks keep their state under the name {twice[0]!r}; give one of them another `name`")

    def _build(self) -> None:
        """Make what is made of the network's weights: optimizer, averages, wrappers. Momentum is kept for the weights that stay."""
        context = self.context
        if self.speed.fused:
            accelerate(self.model)
        before = self.optimizer.state if self.optimizer is not None else {}
        self.optimizer = optimizer_for(self.model, self.recipe)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in before:
                    self.optimizer.state[parameter] = before[parameter]
        drops = isinstance(self.model, ResNet) and self.model.config.survival < 1
        # gradients made anew in each backward pass would lie between the activations and keep the heap from shrinking; and a
        # branch that a step leaves out has a gradient of zero, not none
        self.keeps_gradients = drops or bool(self.plan.length)
        if self.keeps_gradients:
            for parameter in self.model.parameters():  # of a frozen one a gradient of zero would still let its weights decay
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.averaged: AveragedModel | None = None
        if self.recipe.ema:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema), use_buffers=True)
        wrapped: nn.Module = self.model
        if context.world > 1:
            ids = [context.device.index] if context.device.type == "cuda" else None
            wrapped = DistributedDataParallel(self.model, device_ids=ids, find_unused_parameters=drops)
        self.eager = wrapped
        self.forward = compiled_for_training(wrapped) if self.speed.compile else wrapped

    # ---- for callbacks

    def replace_model(self, model: nn.Module | None = None) -> None:
        """Train ``model`` from the next step on; without one, the present network, of which modules were changed in place.

        Optimizer, averaged weights and distributed and compiled wrappers are made anew; momentum is kept for the parameters that
        stay. The best epoch so far is forgotten, since it was another network's. All processes call this alike.
        """
        if model is not None and model is not self.model:
            self.model = model.to(self.context.device).to(memory_format=self.speed.layout)
            if self.plan.length:
                memory.recompute(self.model, self.plan)
            if self.run.sync_norm and self.context.world > 1:
                self.model = synchronise_norms(self.model, self.context.device)
            self.model.train()
        self._build()
        self._best = None
        self.progress.best, self.progress.since_best = math.inf, 0

    def rebuild(self) -> None:
        """``replace_model()``, under its name of earlier versions."""
        self.replace_model()

    def run_eagerly(self) -> None:
        """Stop using the compiled network, on which hooks that change from step to step do not work; until ``replace_model``."""
        self.forward = self.eager

    def optimizer_for(self, module: nn.Module) -> SideOptimizer:
        """An optimizer by the run's recipe for a module that is trained beside the network."""
        return SideOptimizer(self, module)

    def to_layout(self, images: Tensor) -> Tensor:
        """``images`` in the memory layout that the network runs in; tokens have none and are returned as they are."""
        return images.to(memory_format=self.speed.layout) if images.ndim == 4 else images

    def rate(self) -> float:
        """Learning rate of the next step."""
        rate = self.recipe.rate(self.progress.done / self.total) * self.progress.factor
        return min(rate, self.recipe.lr / 10) if self.progress.gentle else rate

    def measure(self, split: str, model: nn.Module | None = None) -> Evaluation:
        """Evaluate on ``"train"``, ``"val"`` or ``"test"`` in the precision that the run trains in; by default ``deploy()``."""
        return measure(
            model if model is not None else self.deploy(),
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

    def score(self, found: Evaluation) -> float:
        """The figure by which epochs are compared, the lower the better: the error, or the loss of a language model."""
        return found.loss if self.data.is_text else found.top1

    def deploy(self) -> nn.Module:
        """The weights to test and to keep: the averaged ones where there are some."""
        return self.averaged.module if self.averaged is not None else self.model

    # ---- for the loop

    def step(self, batch: Batch) -> None:
        """Take one training step; see ``deepres.training.step``."""
        take_step(self, batch)

    def checkpoint(self) -> None:
        """Write a checkpoint, in the main process of a run that has a folder."""
        if self.out is not None and self.context.is_main:
            checkpoint.write(self.out / checkpoint.FOLDER, self.progress.done, checkpoint.state_of(self), self.run.keep)

    def keep_weights(self, name: str) -> None:
        """Save the weights to deploy in the run's folder, if it has one."""
        if self.out is None or not self.context.is_main:
            return
        notes = {"classes": list(self.data.classes), "prepare": self.data.prepare.to_notes(), "data": self.run.data}
        save(self.deploy(), self.out / name, **notes)

    def keep_best(self) -> None:
        """Keep the weights as those of the best epoch: in the run's folder, or else in memory."""
        self.keep_weights(BEST)
        if self.out is None and self.context.is_main:
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.deploy().state_dict().items()}

    def load_best(self) -> None:
        """Load the weights of the best epoch into ``deploy()``, the same in all processes."""
        final = self.deploy()
        if self._best is not None:
            final.load_state_dict(self._best)
        elif self.out is not None and self.context.is_main and (self.out / BEST).exists():
            final.load_state_dict(read_checkpoint(self.out / BEST)[0], strict=False)  # tied weights are kept once
        self.context.broadcast_weights(final)  # the folder may be on one machine only

    def _starts_gently(self) -> bool:
        deep = isinstance(self.model, ResNet) and self.model.config.depth >= self.recipe.gentle_depth
        return bool(self.recipe.gentle_depth) and deep

    def _augment(self) -> Augment:
        """Crops of large views make no sense of small images kept at one size, nor the other way round."""
        if self.data.is_text:
            return "none"
        if isinstance(self.data.train, Resident):
            return "pad-crop-flip" if self.recipe.augment in ("scale-crop", "random-resized-crop") else self.recipe.augment
        kept = self.recipe.augment in ("none", "scale-crop", "random-resized-crop")
        return self.recipe.augment if kept else "random-resized-crop"

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
        """On a CPU: freed memory kept for the next step, or a pool where blocks are recomputed because memory is short."""
        if self.context.device.type != "cpu":
            return contextlib.nullcontext()
        return kernels.pooled_tensors() if self.plan.length else heap_kept()
