"""Measure which ``Speed`` is fastest for a network on this machine, and remember it: ``--speed auto``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres import kernels
from deepres.adapters import flat, logits_in
from deepres.evaluation import processor_name
from deepres.evaluation.timing import alternate
from deepres.kernels.compiling import compiled_for_training
from deepres.paths import cache_folder
from deepres.training.fusion import accelerate
from deepres.training.speed import SPEEDS, Speed

COMPILE_SECONDS = 60.0  # rough cost of compiling; a run has to be long enough to save more than that
_TIE = 0.02  # relative difference of two times that a trial cannot resolve
TRIAL_SHARE = 0.01  # share of the run's time that a trial of compiled modes may take


@contextlib.contextmanager
def exactness(speed: Speed) -> Iterator[None]:
    """While open: only deterministic algorithms, if ``speed`` asks for them; without denormals, which CPUs crawl over."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_flush_denormal(True)
    if speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not speed.deterministic
    torch.backends.cudnn.deterministic = speed.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not speed.deterministic
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[2], before[3]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[4], before[5]


def _stepper(model: nn.Module, images: Tensor, labels: Tensor, speed: Speed) -> Callable[[], None]:
    """A training step of a copy of ``model``."""
    net = copy.deepcopy(model).to(memory_format=speed.layout).train()
    if speed.fused:
        accelerate(net)
    call = compiled_for_training(net) if speed.compile else net
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, 0.9)
    x = images.to(memory_format=speed.layout) if images.ndim == 4 else images

    def step() -> None:
        with speed.autocast(images.device):
            loss = F.cross_entropy(*flat(logits_in(call(x)), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def trial(
    model: nn.Module, images: Tensor, labels: Tensor, speeds: Sequence[Speed], *, enough: float = 10.0
) -> dict[str, float]:
    """Seconds of a training step in each mode, the modes taking turns for about ``enough`` seconds, after one to warm up (and compile).

    What counts is the median over the rounds of each mode's part of its round: other work slows a machine down for seconds or
    minutes, and then all modes alike. A compiled mode that fails (no compiler) is left out.
    """
    steps = {}
    for speed in speeds:
        with contextlib.suppress(Exception) if speed.compile else contextlib.nullcontext():
            step = _stepper(model, images, labels, speed)
            step()
            steps[speed.name] = step
    rounds = list(zip(*alternate(steps, images.device, turns=25, seconds=enough).values(), strict=True))
    fastest = min(map(sum, rounds))
    parts = zip(*([t / sum(times) for t in times] for times in rounds), strict=True)
    return {name: fastest * statistics.median(part) for name, part in zip(steps, parts, strict=True)}


def _has_norms(model: nn.Module) -> bool:
    return any(type(module) is nn.BatchNorm2d for module in model.modules())


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}"


def _without_layouts() -> list[Speed]:
    """The first mode of each kind that differs in more than the layout of images, which tokens do not have."""
    kinds: dict[Speed, Speed] = {}
    for speed in SPEEDS.values():
        kinds.setdefault(dataclasses.replace(speed, name="", channels_last=False), speed)
    return list(kinds.values())


def choose(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Speed:
    """The fastest mode for a run of ``steps`` on this machine, found by a trial of a few steps each and remembered.

    Compiled modes are only tried where the whole run is long enough to earn back what compiling costs, against the best other one.
    """
    key = hashlib.sha256(
        repr((str(model), tuple(images.shape), _machine(images.device), torch.__version__)).encode()
    ).hexdigest()[:24]
    path = cache_folder() / "speed.json"
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    times = dict(known.get(key, {}))
    emulated = images.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()  # bf16, many times slower
    fusible = images.device.type == "cpu" and _has_norms(model) and kernels.status().capability is not None
    able = [
        speed
        for speed in (SPEEDS.values() if images.ndim == 4 else _without_layouts())
        if not speed.deterministic and not (speed.bf16 and emulated) and not (speed.fused and not fusible)
    ]
    new = [speed for speed in able if not speed.compile and speed.name not in times]
    if new:
        times |= trial(model, images, labels, new)
    best = SPEEDS[min((speed.name for speed in able if not speed.compile), key=times.__getitem__)]
    new = [speed for speed in able if speed.compile and speed.bf16 == best.bf16 and speed.name not in times]
    # compiling gains up to about half; try it where a quarter saved would repay it
    if new and 0.25 * times[best.name] * steps > COMPILE_SECONDS:
        times |= trial(model, images, labels, [best, *new], enough=min(120.0, TRIAL_SHARE * times[best.name] * steps))
    if times != known.get(key):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({**known, key: times}))
            os.replace(part, path)
    compiled = known.get(key, {})  # what was measured before is in the compiler's own cache
    whole = {  # a tie goes to the compiled mode, which keeps fewer activations
        name: seconds * steps * (1 - _TIE * SPEEDS[name].compile)
        + (COMPILE_SECONDS if SPEEDS[name].compile and name not in compiled else 0)
        for name, seconds in times.items()
        if SPEEDS.get(name) in able
    }
    return SPEEDS[min(whole, key=whole.__getitem__)]
