"""ResNet-1202 for CIFAR at batch 128: time and peak memory of a training step, bounded and unbounded.

Each measurement is a process of its own, since a process's peak never falls; bounded and unbounded take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.common import record

BATCH, STEPS, TURNS = 128, 3, 2
LIMIT = "3GiB"


def child(memory: str, speed: str) -> None:
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
    with exactness(SPEEDS[speed]):
        trainer = Trainer(run, data, DistributedContext(torch.device("cpu")))
        trainer.model.train()
        times = []
        for epoch in range(STEPS + 1):
            batch = next(trainer.loader.epoch(epoch))
            began = time.perf_counter()
            trainer.step(batch)
            times.append(time.perf_counter() - began)
    print(json.dumps({"seconds": times[1:], "peak_bytes": peak_memory(trainer.context.device), "plan": str(trainer.plan)}))


def main() -> None:
    result: dict[str, object] = {"what": f"resnet1202-cifar, training step of {BATCH} images", "limit": LIMIT}
    for speed in ("bf16-channels-last", "float32-channels-last"):
        runs: dict[str, list[dict[str, object]]] = {LIMIT: [], "all": []}
        for turn in range(TURNS):
            for memory in (LIMIT, "all") if turn % 2 == 0 else ("all", LIMIT):
                command = [sys.executable, "-m", "benchmarks.memory", memory, speed]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs[memory].append(json.loads(out.splitlines()[-1]))
                print(speed, memory, out.splitlines()[-1], flush=True)
        rows = {}
        for memory, found in runs.items():
            seconds = [s for one in found for s in one["seconds"]]  # type: ignore[attr-defined]
            rows["bounded" if memory == LIMIT else "unbounded"] = {
                "n": len(seconds),
                "seconds": round(statistics.median(seconds), 2),
                "fastest": round(min(seconds), 2),
                "slowest": round(max(seconds), 2),
                "peak_gib": round(max(one["peak_bytes"] for one in found) / 2**30, 2),  # type: ignore[type-var,operator]
                "plan": found[0]["plan"],
            }
        ratio = rows["bounded"]["seconds"] / rows["unbounded"]["seconds"]
        result[speed] = {**rows, "time_ratio": round(ratio, 3)}
    record("memory-resnet1202", result)


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
