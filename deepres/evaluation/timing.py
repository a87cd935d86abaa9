"""Timing: calls in alternating turns, spans inside a forward pass, devices that work later than they are asked to.

Everything in deepres that measures how long something takes, to decide or to report by it, does so here. Read: ``now`` is the
clock, ``alternate`` times whole calls, ``timeline`` points inside a pass, ``from_first_process`` makes one process's figures all
processes' figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Name = TypeVar("Name")
_Value = TypeVar("_Value")
TimingPoint = tuple[nn.Module, Literal["before", "after"]]  # the moment at which a forward pass enters or leaves a module

LEAST_TURNS = 3  # that a limit of time leaves


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done all that is queued on it. A CPU has no queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def now(device: torch.device) -> float:
    """The time in seconds, from an arbitrary start, once ``device`` has done all that is queued on it."""
    synchronise(device)
    return time.perf_counter()


def alternate(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device,
    *,
    turns: int = 7,
    warmup: int = 0,
    seconds: float | None = None,
) -> dict[Name, list[float]]:
    """Seconds that each call took in each of ``turns`` turns. Every second turn goes through the calls in reverse.

    A shared machine slows down for seconds or minutes at a time. Calls of one turn meet the same machine, so they compare by the
    ratios within turns, and no call profits from its place in the order.

    ``device``: where the calls compute; their time ends when it has finished. ``warmup``: calls of each beforehand that are not
    timed. ``seconds``: begin no further turn after this long, but take at least three.
    """
    took: dict[Name, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    first = now(device)
    for turn in range(turns):
        if seconds is not None and turn >= LEAST_TURNS and now(device) - first >= seconds:
            break
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            began = now(device)
            calls[name]()
            took[name].append(now(device) - began)
    return took


def call_times(call: Callable[[], object], device: torch.device, *, repeats: int = 7, warmup: int = 1) -> list[float]:
    """Seconds of ``repeats`` calls, after ``warmup`` that are not timed."""
    return alternate({0: call}, device, turns=repeats, warmup=warmup)[0]


@torch.no_grad()
def time_against(
    whole: Callable[[Tensor], object], other: Callable[[Tensor], object], inputs: Tensor, batch: int, *, turns: int = 7
) -> tuple[float, tuple[float, float]]:
    """Time of ``other`` over the time of ``whole``, on the same inputs in batches of ``batch``.

    Returns the median of the turns' ratios and the middle half of them, (median, (low, high)). The ratio of the two fastest turns
    would be less sure: they may lie minutes apart, and one lucky turn decides.
    """
    pieces = inputs.split(batch)

    def over(some: Sequence[Tensor], network: Callable[[Tensor], object]) -> None:
        for piece in some:
            network(piece)

    for network in (whole, other):
        over(pieces[:2], network)  # warm up
    took = alternate({"other": partial(over, pieces, other), "whole": partial(over, pieces, whole)}, inputs.device, turns=turns)
    ratios = sorted(b / a for a, b in zip(took["whole"], took["other"], strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), (ratios[quarter], ratios[-1 - quarter])


@torch.no_grad()
def timeline(
    points: Sequence[TimingPoint], forward: Callable[[], object], device: torch.device, *, repeats: int = 7
) -> list[list[float]]:
    """Measure when ``forward`` reaches each point and its end, in seconds from its beginning: ``repeats`` rows of (points + 1) times.

    One pass before warms up. The clock waits for the device at each point, so on a GPU the times between points are right and the
    whole pass is slower than it would be.
    """
    at = [0.0] * len(points)
    rows = []
    with ExitStack() as stack:
        for i, (module, side) in enumerate(points):

            def note(*_: object, i: int = i) -> None:
                at[i] = now(device)

            hook = module.register_forward_pre_hook if side == "before" else module.register_forward_hook
            stack.callback(hook(note).remove)
        for _ in range(repeats + 1):
            began = now(device)
            forward()
            rows.append([moment - began for moment in (*at, now(device))])
    return rows[1:]


def from_first_process(value: _Value) -> _Value:
    """``value`` of the process of rank 0, in all processes; alone, ``value`` itself.

    No two processes measure the same time, and what each decides by its own figures differs. All processes have to call this.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
