"""The trunk of a convolutional network: the modules that the signal passes one after the other, cut where its resolution falls.

It is found by following the signal through one forward pass, so that no name of any architecture is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters.modes import kept_modes
from deepres.adapters.site import sites
from deepres.adapters.spec import device_of, spec_of
from deepres.errors import DeepresError, first_line

PROBE = 128  # side of the image that is followed, pixels


@dataclass(frozen=True)
class Level:
    """Consecutive modules whose output has one resolution."""

    paths: tuple[str, ...]  # of the modules, in the order in which they run
    stride: int  # the image's side divided by the output's
    channels: int  # of the output


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module that takes a feature map and gives one."""

    path: str
    given: Tensor
    result: Tensor
    begin: int  # counted over all calls of modules
    end: int

    @property
    def side(self) -> int:
        return self.result.shape[-1]


def trunk(model: nn.Module) -> list[Level]:
    """The levels of ``model``, from the image on to the last feature map; pooling, classifier and the like are left out.

    Running all their modules one after the other gives what the model itself computes up to there.

    Raises ``DeepresError`` for a network whose signal is no feature map (N, C, H, W), or that adds or joins signals outside of
    its modules.
    """
    if any(site.layout != "NCHW" for site in sites(model)):
        raise DeepresError(
            f"{type(model).__name__}: its signal is not a feature map (N, C, H, W), so it has no levels of features"
        )
    image = torch.zeros(1, spec_of(model).channels or 3, PROBE, PROBE, device=device_of(model))
    calls = _followed(model, image)
    links = [part for link in _chain(calls, image) for part in _parts(calls, link)]
    levels: list[Level] = []
    for link in links:
        stride = round(PROBE / link.side)
        if not levels or stride > levels[-1].stride:
            levels.append(Level((link.path,), stride, link.result.shape[1]))
        else:
            levels[-1] = Level((*levels[-1].paths, link.path), stride, link.result.shape[1])
    while levels and not any(_has_weights(model, path) for path in levels[-1].paths):
        levels.pop()
    last = links[-1].end if links else -1
    behind = [call for call in calls if call.begin > last and min(call.given.shape[2:]) > 1 and _has_weights(model, call.path)]
    if len(levels) < 2 or behind:
        where = f" behind {links[-1].path!r}" if links else ""
        raise DeepresError(
            f"{type(model).__name__}: its modules do not simply follow one another{where}, so it has no levels of features"
        )
    return levels


def _has_weights(model: nn.Module, path: str) -> bool:
    return any(True for _ in model.get_submodule(path).parameters())


def _followed(model: nn.Module, image: Tensor) -> list[_Call]:
    """The calls in a forward pass of ``image``, in the order in which they begin.

    The calls keep their tensors, so that no two of them share an identity.
    """
    calls: list[_Call] = []
    begun: list[int] = []
    clock = itertools.count()

    def before(*_: Any) -> None:
        begun.append(next(clock))

    def after(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            begin = begun.pop()
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor) and args[0].ndim == out.ndim == 4:
                calls.append(_Call(path, args[0], out, begin, next(clock)))

        return hook

    handles = []
    for path, module in model.named_modules():
        if path:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(path))]
    try:
        with kept_modes(model), torch.no_grad():
            model.eval()(image)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        what = first_line(error)
        raise DeepresError(f"{type(model).__name__}: an image of {PROBE} pixels does not pass through it ({what})") from error
    finally:
        for handle in handles:
            handle.remove()
    return sorted(calls, key=lambda call: call.begin)


def _chain(calls: Sequence[_Call], signal: Tensor) -> list[_Call]:
    """Calls, not inside one another, each of which takes what the one before gave, until the signal is pooled to one pixel."""
    found: list[_Call] = []
    for call in calls:
        if found and call.begin < found[-1].end:  # inside the one before
            continue
        if call.given is not signal:
            continue
        if min(call.result.shape[2:]) == 1 or (found and call.side > found[-1].side):
            break
        found.append(call)
        signal = call.result
    return found


def _parts(calls: Sequence[_Call], link: _Call) -> list[_Call]:
    """The calls inside ``link``, where they follow one another and pass several resolutions; else the link itself."""
    inner = _chain([call for call in calls if link.begin < call.begin and call.end < link.end], link.given)
    passed = {call.side for call in inner} - {link.given.shape[-1]}
    if len(passed) < 2 or inner[-1].result is not link.result:
        return [link]
    return [part for call in inner for part in _parts(calls, call)]
