"""ResNet-1202 for CIFAR at batch 128: time and peak memory of a training step, bounded and unbounded.

    python -m benchmarks.memory                                          # all modes; about ten minutes on two cores
    python -m benchmarks.memory --modes bf16-fused --steps 2 --turns 1   # one of them; the others stay as they were recorded

Each measurement is a process of its own, since a process's peak never falls; bounded and unbounded take turns. The time that the process
computes is recorded too: other work on the machine changes it less than the time that passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

BATCH = 128
LIMITS = {"bf16-fused": "1.5GiB", "bf16-channels-last": "3GiB", "float32-channels-last": "3GiB"}
FILE = Path(__file__).parent / "results" / "memory-resnet1202.json"


def child(memory: str, speed: str, steps: int) -> None:
    from deepres import Run
    from deepres.data import Data, Prepare, Resident
    from deepres.training import Trainer, recipe
    from deepres.training.distribute import DistributedContext
    from deepres.training.progress import peak_memory
    from deepres.training.speed import SPEEDS
    from deepres.training.speed_trial import exactness

    images = Resident(torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (BATCH,)))
    data = Data("random", tuple("0123456789"), images, images, images, Prepare(32, 3, (0.5,) * 3, (0.25,) * 3))
    run = Run("resnet1202-cifar", "random", recipe("paper-cifar"), speed=speed, memory=memory)
    trainer = Trainer(run, data, DistributedContext(torch.device("cpu")))
    trainer.model.train()
    seconds, computing = [], []
    with exactness(SPEEDS[speed]), trainer.heap():
        for epoch in range(steps + 1):
            batch = next(trainer.loader.epoch(epoch))
            began, busy = time.perf_counter(), time.process_time()
            trainer.step(batch)
            seconds.append(time.perf_counter() - began)
            computing.append(time.process_time() - busy)
    found = {"seconds": seconds[1:], "cpu_seconds": computing[1:], "plan": str(trainer.plan)}
    print(json.dumps({**found, "peak_bytes": peak_memory(trainer.context.device)}))


def measure_mode(speed: str, limit: str, steps: int, turns: int) -> dict[str, Any]:
    """Steps with and without a limit: seconds, peaks, and the ratio of their medians."""
    runs: dict[str, list[dict[str, Any]]] = {limit: [], "all": []}
    for turn in range(turns):
        for memory in (limit, "all") if turn % 2 == 0 else ("all", limit):
            command = [sys.executable, "-m", "benchmarks.memory", "--child", memory, speed, str(steps)]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[memory].append(json.loads(out.splitlines()[-1]))
            print(speed, memory, out.splitlines()[-1], flush=True)
    rows: dict[str, Any] = {}
    for memory, found in runs.items():
        seconds, computing = ([s for one in found for s in one[key]] for key in ("seconds", "cpu_seconds"))
        rows["bounded" if memory == limit else "unbounded"] = {
            "n": len(seconds),
            "seconds": round(statistics.median(seconds), 2),
            "fastest": round(min(seconds), 2),
            "slowest": round(max(seconds), 2),
            "cpu_seconds": round(statistics.median(computing), 2),
            "peak_gib": round(max(one["peak_bytes"] for one in found) / 2**30, 2),
            "plan": found[0]["plan"],
        }
    ratios = {
        name: round(rows["bounded"][key] / rows["unbounded"][key], 3)
        for name, key in (("time_ratio", "seconds"), ("cpu_time_ratio", "cpu_seconds"))
    }
    return {"limit": limit, **rows, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--steps", type=int, default=3, help="of each process, after one to warm up")
    parser.add_argument("--turns", type=int, default=2, help="processes with and without a limit, for each mode")
    parser.add_argument("--child", nargs=3, metavar=("MEMORY", "SPEED", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        memory, speed, steps = options.child
        child(memory, speed, int(steps))
        return
    from benchmarks.common import machine  # not in the measured processes: it imports torchvision

    result: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    result |= {"name": FILE.stem, "what": f"resnet1202-cifar, training step of {BATCH} images"}
    for mode in options.modes:
        found = measure_mode(mode, LIMITS[mode], options.steps, options.turns)
        result[mode] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), **found}
        FILE.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
