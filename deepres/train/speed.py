"""How the arithmetic is done: precision, memory layout, compilation. ``auto`` tries and remembers what is fastest here."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.data import cache_folder
from deepres.nn import flat, logits_in

COMPILE_SECONDS = 60.0  # what compiling costs at first, roughly; a run has to be long enough to earn it back


@dataclass(frozen=True)
class Speed:
    """One way to run the same network."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()


SPEEDS = {
    speed.name: speed
    for speed in (
        Speed("exact", deterministic=True),
        Speed("float32"),
        Speed("float32-channels-last", channels_last=True),
        Speed("bf16", bf16=True),
        Speed("bf16-channels-last", bf16=True, channels_last=True),
        Speed("float32-compiled", channels_last=True, compile=True),
        Speed("bf16-compiled", bf16=True, channels_last=True, compile=True),
        Speed("bf16-compiled-contiguous", bf16=True, compile=True),
    )
}


@contextlib.contextmanager
def exactness(speed: Speed) -> Iterator[None]:
    """While open: only deterministic algorithms, if ``speed`` asks for them; without denormals, which CPUs crawl over."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
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
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1], before[2]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3], before[4]


def step_seconds(model: nn.Module, images: Tensor, labels: Tensor, speed: Speed, *, repeats: int = 6) -> float:
    """The fastest of some training steps of a copy of ``model``, in seconds, after one to warm up (and compile).

    The fastest, since whatever else the machine does can only slow a step down.
    """
    net = copy.deepcopy(model).to(memory_format=speed.layout).train()
    call = torch.compile(net) if speed.compile else net
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, 0.9)
    x = images.to(memory_format=speed.layout) if images.ndim == 4 else images
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        with speed.autocast(images.device):
            loss = F.cross_entropy(*flat(logits_in(call(x)), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as cpu:
        model = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), model)
    return f"{model} {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}"


def choose(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Speed:
    """The fastest mode for a run of ``steps`` on this machine, found by a trial of a few steps each and remembered.

    Compiled modes are only tried where the whole run is long enough to earn back what compiling costs.
    """
    key = hashlib.sha256(
        repr((str(model), tuple(images.shape), _machine(images.device), torch.__version__)).encode()
    ).hexdigest()[:24]
    path = cache_folder() / "speed.json"
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    times = dict(known.get(key, {}))
    for speed in SPEEDS.values():
        if speed.compile or speed.deterministic or speed.name in times:
            continue
        if speed.bf16 and images.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
            continue  # emulated, many times slower
        times[speed.name] = step_seconds(model, images, labels, speed)
    best = min(times.values())
    for speed in SPEEDS.values():
        # compiling gains up to about half; try it where a quarter saved would repay it
        worth = 0.25 * best * steps > COMPILE_SECONDS and speed.bf16 == SPEEDS[min(times, key=times.__getitem__)].bf16
        if speed.compile and worth and speed.name not in times:
            with contextlib.suppress(Exception):  # no compiler on this machine: stay with what runs
                times[speed.name] = step_seconds(model, images, labels, speed)
    if times != known.get(key):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({**known, key: times}))
            os.replace(part, path)
    compiled = known.get(key, {})  # what was measured before is in the compiler's own cache
    whole = {
        name: seconds * steps + (COMPILE_SECONDS if SPEEDS[name].compile and name not in compiled else 0)
        for name, seconds in times.items()
        if name in SPEEDS
    }
    return SPEEDS[min(whole, key=whole.__getitem__)]
