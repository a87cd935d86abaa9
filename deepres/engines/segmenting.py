"""A ghost with early exits as exported segments: one graph for each run of blocks between two exits, and what their runner has to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deepres.adapters import logits_in
from deepres.adapters.calls import patched, signal_in, with_signal
from deepres.engines.exporters import TensorNames, capture_graph, openvino_model
from deepres.errors import DeepresError
from deepres.exits import Average, ExitHead
from deepres.ghosting import Ghost, Settings

AVERAGE = ("total", "count")  # of the exits so far, as ``Average`` keeps them


def check_segments(ghost: Ghost) -> None:
    """Raises ``DeepresError`` where what a ghost computes for an input is decided elsewhere than at its exits."""
    settings = ghost.settings
    if settings.skip_threshold is not None and not settings.fixed:
        raise DeepresError(
            "the ghost's gates choose for each input which blocks run, and a graph runs the same ones for all; "
            "make the ghost with --gates fixed or --gates none"
        )
    if ghost.deadline is not None:
        raise DeepresError("the ghost keeps a deadline by the clock, which no graph reads; make it without --deadline")


def used_exits(ghost: Ghost, settings: Settings | None = None) -> list[int]:
    """The segments of ``ghost`` behind which inputs may leave, with its own ``settings`` or with others."""
    settings = settings or ghost.settings
    return [c for c, head in enumerate(ghost.exits) if isinstance(head, ExitHead) and settings.uses_exit(c)]


def exit_thresholds(ghost: Ghost, settings: Settings) -> tuple[float, ...] | None:
    """Confidence from which on inputs leave, at each exit that ``ghost`` uses, with other ``settings`` than its own.

    An exit that these do not use has infinity. None where the graphs of its segments do not compute these settings: where other blocks
    are skipped, other exits are used, or other answers are averaged.
    """
    own = ghost.settings
    exits, wanted = used_exits(ghost), used_exits(ghost, settings)
    averages = (own.average, exits) == (settings.average, wanted) or not (own.average or settings.average)
    if settings.exit_threshold is None or not averages or not set(wanted) <= set(exits) or _skips(own) != _skips(settings):
        return None
    return tuple(settings.exit_threshold if c in wanted else math.inf for c in exits)


def _skips(settings: Settings) -> tuple[object, ...]:
    """The settings that decide which blocks are skipped."""
    return () if settings.skip_threshold is None else (settings.skip_threshold, settings.fixed, settings.gates)


class _Segment(nn.Module):
    """The part of a ghost's network from behind the exit ``start`` (or from the images) up to the exit ``end`` (or the logits).

    The network's own code runs from its beginning to its end, since it says how the blocks are connected; the signal is exchanged
    behind ``start`` and taken behind ``end``, so what it computes besides has no users in the captured graph.
    """

    def __init__(self, ghost: Ghost, start: int | None, end: int | None, image: tuple[int, ...]) -> None:
        super().__init__()
        self.ghost, self.start, self.end, self.image = ghost, start, end, image
        self.skipped = list(_skipped(ghost))  # read here, since the values of tensors are not known while the graph is captured

    def forward(self, signal: Tensor, total: Tensor | None = None, count: Tensor | None = None) -> Any:
        ghost = self.ghost
        found: list[Tensor] = []
        images = signal if self.start is None else signal.new_zeros(signal.shape[0], *self.image)
        forwards: dict[nn.Module, Callable[..., Any]] = dict(self.skipped)
        if self.start is not None:
            module = ghost.ends[self.start]
            forwards[module] = _exchanged(forwards.get(module, module.forward), signal)
        if self.end is not None:
            module = ghost.ends[self.end]
            forwards[module] = _taken(forwards.get(module, module.forward), found)
        with ExitStack() as stack:
            for module, forward in forwards.items():
                stack.enter_context(patched(module, forward))
            out = ghost.net(images)
        before = Average(total, count) if total is not None and count is not None else None
        if self.end is None:
            logits = logits_in(out).float()
            return (logits if before is None else before.with_last(logits / ghost.temperature),)
        head = ghost.exits[self.end]
        assert isinstance(head, ExitHead)
        logits, confidence = head(found[0])
        if not ghost.settings.average:
            return logits, confidence, found[0]
        average, logits, confidence = Average.add(before, logits, confidence)
        return logits, confidence, found[0], average.total, average.count


def _skipped(ghost: Ghost) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """The blocks that fixed gates skip for every input, and what takes their place."""
    for i in ghost.skipped_by_all():
        yield ghost.blocks[i].sites[0].block, ghost.blocks[i].without_branches


def _exchanged(original: Callable[..., Any], signal: Tensor) -> Callable[..., Any]:
    return lambda *args, **kwargs: with_signal(original(*args, **kwargs), signal)


def _taken(original: Callable[..., Any], found: list[Tensor]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        found.append(signal_in(out))
        return out

    return forward


@dataclass(frozen=True, eq=False)
class CapturedSegment:
    """The graph of a segment, and the names of what it takes and gives."""

    program: ExportedProgram
    names: TensorNames
    exit: int | None  # the ghost's segment behind which its exit stands; None: it ends in the network's logits
    example: Tensor  # its first input


@torch.no_grad()
def capture_segments(ghost: Ghost, images: Tensor) -> Iterator[CapturedSegment]:
    """Capture the segments of ``ghost``, one after the other, for any batch size. ``images`` (N, C, H, W), at least two.

    Raises ``DeepresError`` as ``capture`` does.
    """
    ghost.route(False)
    exits = used_exits(ghost)
    carried: tuple[Tensor, ...] = (images,)
    taken: tuple[str, ...] = ("images",)
    for start, end in zip([None, *exits], [*exits, None], strict=True):
        segment = _Segment(ghost, start, end, tuple(images.shape[1:])).eval()
        given = ("signal", *(AVERAGE if ghost.settings.average else ()))
        outputs = ("logits",) if end is None else ("logits", "confidence", *(f"next_{name}" for name in given))
        program = _pruned(capture_graph(segment, carried, ghost.net), carried, ghost.net)
        yield CapturedSegment(program, TensorNames(taken, outputs), end, carried[0])
        carried, taken = tuple(segment(*carried)[2:]), given


def _pruned(program: ExportedProgram, examples: tuple[Tensor, ...], model: nn.Module) -> ExportedProgram:
    """The graph without the computations whose results nobody uses, and without their weights."""
    module = program.module(check_guards=False)
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_parameters()), *dict(module.named_buffers())]:
        if name not in used:
            owner, _, last = name.rpartition(".")
            delattr(module.get_submodule(owner), last)
    return capture_graph(module, examples, model)


@dataclass(frozen=True, eq=False)
class SegmentGraphs:
    """The segments of a ghost as OpenVINO's models."""

    models: tuple[Any, ...]
    exits: tuple[int, ...]  # of all segments but the last, as the ghost counts them
    thresholds: tuple[float, ...]  # confidence from which on an input leaves, for each exit
    about: dict[str, Any]  # as of ``graphs_of``

    @classmethod
    def of(cls, ghost: Ghost, example: Tensor) -> SegmentGraphs:
        """Convert the segments of ``ghost``. Raises ``DeepresError`` for one whose gates decide for each input."""
        check_segments(ghost)
        found = list(capture_segments(ghost, example))
        return cls.with_models(ghost, [openvino_model(one.program, one.example, one.names) for one in found])

    @classmethod
    def with_models(cls, ghost: Ghost, models: Sequence[Any]) -> SegmentGraphs:
        """The segments of ``ghost`` that were converted before."""
        exits = used_exits(ghost)
        return cls(tuple(models), tuple(exits), (ghost.settings.exit_threshold or 0.0,) * len(exits), graphs_of(ghost))


def graphs_of(ghost: Ghost) -> dict[str, Any]:
    """Properties of a ghost that its segments' graphs depend on besides its weights, as JSON values."""
    return {"exits": used_exits(ghost), "average": ghost.settings.average, "skipped": ghost.skipped_by_all()}
