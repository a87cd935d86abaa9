"""Load a network or a ghost to serve, on an engine or in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.adapters import logits_in, logits_of
from deepres.adapters.spec import device_of
from deepres.engines import Optimized, build_choice, optimize
from deepres.engines.inputs import validation_images
from deepres.engines.registry import engines_for
from deepres.engines.segmenting import exit_thresholds
from deepres.errors import DeepresError
from deepres.ghosting import Ghost, Point, Settings, is_ghost, open_ghost
from deepres.ghosting.make import FILE
from deepres.ghosting.points import pareto_front
from deepres.models import OpenedModel, SegmentedModel, data_for, open_model
from deepres.models.exported import ExportedModel
from deepres.serve.spec import Facts, Spec
from deepres.training.distribute import pick_device

MEASURED = 8  # images of the batch that engines are compared on
MEASURING = 10.0  # seconds for it, at most
MOST_LEVELS = 4  # by which a ghost can be tightened, at most

Answering = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (x, steps to tighten by) -> logits (N, K), depth (N,)


def load_answering(spec: Spec) -> tuple[Answering, Facts]:
    """Load what ``spec`` names: (what answers images, the facts about it).

    Raises ``DeepresError`` where it cannot be loaded, or not on the engine that is asked for by name, and for options without a use.
    """
    if is_ghost(spec.reference):
        if spec.weights is not None:
            raise DeepresError("--weights: a ghost's folder holds its weights; leave --weights out")
        opened = open_ghost(spec.reference)
    else:
        opened = open_model(spec.reference, weights=spec.weights)
    model: Any = opened.model.eval().to(pick_device(spec.device))
    prepare = opened.preparation()
    classes = opened.notes.get("classes") or opened.classes or [str(i) for i in range(opened.spec.classes or 0)]
    if spec.tighten and not isinstance(model, Ghost):
        raise DeepresError(f"--tighten: makes a ghost faster, and {spec.reference} is none; leave --tighten out")
    in_file = isinstance(model, ExportedModel) and spec.engine == "auto"
    _check_data(spec, in_file)
    levels, blocks, engine, why_not = 0, 0, "none", ""
    answering: Answering
    if isinstance(model, Ghost):
        blocks = len(model.blocks)
        answering, levels, engine, why_not = _ghost(model, spec, partial(_on_engine, model, spec, opened))
    else:
        if in_file:
            engine = model.engine
        elif spec.engine != "none":
            model = _on_engine(model, spec, opened)
            engine = str(model.choice)
        answering = _Network(model)
    name = Path(spec.reference).name
    return answering, Facts(name, tuple(classes), prepare.to_notes(), blocks, levels, engine, why_not)


def _check_data(spec: Spec, in_file: bool) -> None:
    """Raises ``DeepresError`` for data where no engines are compared; ``in_file``: the network is a file of one engine."""
    if spec.data is None:
        return
    chosen = "the file is for one engine" if in_file else f"--engine {spec.engine} leaves no choice"
    if in_file or spec.engine == "none" or Path(spec.engine).is_dir():
        raise DeepresError(f"--data: engines are compared on its images, and {chosen}; leave --data out")


def _ghost(ghost: Ghost, spec: Spec, on_engine: Callable[[], Optimized]) -> tuple[Answering, int, str, str]:
    """(what answers images, steps by which it can be tightened, its engine, why it has none)."""
    steps = _faster(ghost, spec.reference)
    in_pytorch = _InPyTorch(ghost, [ghost.settings, *steps])
    if spec.engine == "none":
        return in_pytorch, len(steps), "none", ""
    by_exits = _faster(ghost, spec.reference, exits_alone=True)
    if spec.tighten and steps and not by_exits:
        why = "--tighten changes which blocks and exits are used, and an engine only changes the confidence that exits ask for"
        if spec.engine != "auto":
            raise DeepresError(f"--engine {spec.engine}: {why}; leave one of them out")
        return in_pytorch, len(steps), "none", why
    try:
        fast = on_engine()
    except DeepresError as error:
        if spec.engine != "auto":
            raise
        return in_pytorch, len(steps), "none", str(error)
    if (ratio := _ratio(fast)) < 1:
        return in_pytorch, len(steps), "none", f"{fast.choice} takes {1 / ratio:.2f} times as long here"
    return _OnEngine(fast, ghost, [ghost.settings, *by_exits]), len(by_exits), str(fast.choice), ""


def _ratio(fast: Optimized) -> float:
    """Speed of what was chosen relative to the network in PyTorch; 1 where it was not measured."""
    choice = fast.choice
    wanted = (choice.engine, choice.precision, choice.answers)
    return next((one.ratio for one in fast.candidates if (one.engine, one.precision, one.answers) == wanted), 1.0)


def _faster(ghost: Ghost, folder: str, *, exits_alone: bool = False) -> list[Settings]:
    """Settings that are faster than the ghost's own, each faster than the one before, at most four.

    ``exits_alone``: of those that differ by the exits' confidence, which need no other graphs.
    """
    told = json.loads((Path(folder) / FILE).read_text())
    chosen = Point.from_dict(told["point"])
    points = [Point.from_dict(point) for point in told["points"]]
    if exits_alone:
        points = [point for point in points if exit_thresholds(ghost, point.settings) is not None]
    faster = [p.settings for p in sorted(pareto_front(points), key=lambda p: -p.time) if p.time < chosen.time]
    return faster[:: max(1, len(faster) // MOST_LEVELS)][:MOST_LEVELS]


class _Network:
    """A network whose blocks all run, or a ghost's exported segments."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        logits = logits_of(self.model, x)
        return logits, self.model.depth if isinstance(self.model, SegmentedModel) else torch.ones(len(x))


class _InPyTorch:
    """A ghost in PyTorch. ``steps``: its settings, from as chosen to ever faster."""

    def __init__(self, ghost: Ghost, steps: Sequence[Settings]) -> None:
        self.ghost, self.steps = ghost, steps

    def __call__(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        self.ghost.settings = self.steps[min(level, len(self.steps) - 1)]
        logits = logits_in(self.ghost(x, trace=True))
        assert self.ghost.trace is not None
        return logits, self.ghost.trace.ran.float().mean(1)


class _OnEngine:
    """A ghost on an engine. ``steps``: as of ``_InPyTorch``; they differ by the exits' confidence."""

    def __init__(self, fast: Optimized, ghost: Ghost, steps: Sequence[Settings]) -> None:
        self.fast, self.depth = fast, ghost.depth_of_exits()
        self.thresholds = [found for one in steps if (found := exit_thresholds(ghost, one)) is not None]

    def __call__(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        if not self.thresholds:  # no exits: an ordinary network
            return self.fast(x), self.depth[-1].expand(len(x))
        self.fast.leave_from(self.thresholds[min(level, len(self.thresholds) - 1)])
        return self.fast(x), self.depth[self.fast.exited_at]


def _on_engine(model: Any, spec: Spec, opened: OpenedModel) -> Optimized:
    """The network on the engine that was asked for, or on the fastest that takes any number of images without compiling anew."""
    device, count, images = device_of(model), min(spec.batch, MEASURED), None
    if spec.data is None:
        example = opened.preparation().example(count, torch.Generator().manual_seed(0)).to(device)
    else:
        images = validation_images(data_for(opened, spec.data).data, at_least=count).to(device)
        example = images[:count]
    if Path(spec.engine).is_dir():
        return build_choice(model, example, spec.engine)
    automatic = spec.engine == "auto"
    usable = [engine.name for engine in engines_for("auto", device) if engine.any_batch] if automatic else spec.engine
    return optimize(model, example, engine=usable, images=images, seconds=MEASURING, measure=automatic or images is not None)
