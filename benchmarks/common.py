"""Side-by-side measurement: alternating, in one process tree, recorded with what it ran on."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision

import deepres
from deepres.evaluation import processor_name, timing
from deepres.training.distribute import pick_device

DEVICE = pick_device("auto")
BF16 = DEVICE.type == "cuda" or torch.cpu._is_avx512_bf16_supported()  # elsewhere it is emulated, many times slower
SPEED = "bf16-channels-last" if BF16 else "float32-channels-last"  # of trainings that are compared by what they learn
BESIDE = "-gpu" if DEVICE.type == "cuda" else ""  # of results that stand beside what a CPU measured
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "cpu": processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "deepres": deepres.__version__,
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


def machine_kind() -> str:
    """The kind of machine that ratios hold for, as part of a result's name: ``amx``, ``avx512-bf16``, ``avx512``, ``avx2`` or ``gpu``."""
    if DEVICE.type == "cuda":
        return "gpu"
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return torch.backends.cpu.get_cpu_capability().lower().split("_")[0] + ("-bf16" if BF16 else "")


def alternate(candidates: dict[str, Callable[[], object]], *, repeats: int = 7, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each call. The candidates take turns, in reversed order every second round."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return timing.alternate(candidates, device, turns=repeats, warmup=warm)


class Remote:
    """A candidate in a process of its own, so that its allocator, caches and settings are those that its users have.

    ``build(*args)`` is called there and gives the call to be timed and a name for it; both have to be importable. ``paused``: it may
    start processes of its own, such as those that load data, and all of them are stopped between its calls.
    """

    def __init__(self, build: Callable[..., tuple[Callable[[], object], str]], *args: object, paused: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, args, paused), daemon=not paused)
        self.process.start()
        self.paused = paused
        try:
            self.name: str = self._answer()
        except BaseException:  # also of Ctrl-C: a group of its own does not hear of it
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if self.paused and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, or has no group of its own yet
                os.killpg(self.process.pid, number)

    def _answer(self) -> Any:
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __call__(self) -> None:
        self._signal(signal.SIGCONT)
        self.pipe.send("go")
        self._answer()
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        if self.paused:  # let it end those that it started
            self._signal(signal.SIGCONT)
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(20)
            self._signal(signal.SIGKILL)
        self.process.terminate()
        self.process.join()


def _serve(
    pipe: Connection, build: Callable[..., tuple[Callable[[], object], str]], args: tuple[object, ...], leads: bool = False
) -> None:
    if leads:
        os.setpgid(0, 0)  # a group that can be stopped as a whole
    try:
        call, name = build(*args)
        pipe.send(name)
        while pipe.recv():
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pipe.send("done")
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def in_groups(make: Callable[[], Sequence[Remote]], groups: int, turns: int, warm: int) -> dict[str, list[float]]:
    """Seconds of each turn of the candidates that ``make`` starts, alternating, over ``groups`` of fresh processes."""
    times: dict[str, list[float]] = {}
    for _ in range(groups):
        candidates = make()
        try:
            found = alternate({one.name: one for one in candidates}, repeats=turns, warm=warm)
        finally:
            for one in candidates:
                one.close()
        for name, seconds in found.items():
            times.setdefault(name, []).extend(seconds)
    return times


def summary(times: dict[str, list[float]], count: int, against: str, unit: str = "images") -> dict[str, dict[str, Any]]:
    """Units per second (median, lowest, highest), ``count`` of which a turn does, and the median of the ratios to ``against``."""
    out = {}
    for name, values in times.items():
        ratios = [peer / mine for mine, peer in zip(values, times[against], strict=True)]
        out[name] = {
            "n": len(values),
            f"{unit}_per_second": round(count / statistics.median(values), 1),
            "lowest": round(count / max(values), 1),
            "highest": round(count / min(values), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_lowest": round(min(ratios), 3),
            "ratio_highest": round(max(ratios), 3),
        }
    return out


def result_name(what: str, net: str, size: int) -> str:
    """Of a network of ours for CIFAR."""
    return f"{what}-{net.removesuffix('-cifar')}-{size}px{BESIDE}"


def record(name: str, result: dict[str, Any]) -> None:
    """Write ``benchmarks/results/NAME.json`` and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"name": name, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text, flush=True)
