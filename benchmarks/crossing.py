"""From which budget does depth pay? CIFAR ResNets of several depths, trained for several numbers of epochs on the same files.

    python -m benchmarks.crossing --data ../shared/data/cifar10-jpeg --epochs 10 20 --depths 20 32 56 --seeds 0

Each finished training is a row of benchmarks/results/crossing.json, and what is there already is not trained again, so the table
may grow over many sittings. A training that is interrupted goes on from its checkpoint in runs/crossing. The recipe is the same for
all: one cycle to 0.2, Nesterov momentum, weight decay 5e-4 but not of norms and biases, label smoothing 0.1, batches of 128. Test
errors are those of the weights with the best validation error, on all test images; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, SPEED, machine
from deepres.data import Data, open_data
from deepres.training import Run, recipe, train

FILE = RESULTS / "crossing.json"
RECIPE = dataclasses.replace(recipe("fast-cifar"), name="crossing", lr=0.2)


def read_rows() -> list[dict[str, Any]]:
    """The trainings recorded so far."""
    return json.loads(FILE.read_text())["rows"] if FILE.exists() else []


def write(rows: list[dict[str, Any]], data: Data) -> None:
    rows = sorted(rows, key=lambda row: (row["epochs"], row["depth"], row["seed"]))
    table: dict[str, Any] = {}
    for row in rows:
        table.setdefault(f"{row['epochs']:g} epochs", {}).setdefault(f"resnet{row['depth']}", []).append(row["test_error"])
    means = {
        epochs: {
            net: {
                "n": len(errors),
                "mean": round(statistics.fmean(errors), 2),
                "spread": round(statistics.stdev(errors), 2) if len(errors) > 1 else None,
            }
            for net, errors in nets.items()
        }
        for epochs, nets in table.items()
    }
    found = {
        "name": "crossing",
        "what": f"Test error (%) of CIFAR ResNets by depth and epochs, {len(data.train):,} training images at 32x32",
        "recipe": "one cycle to 0.2, Nesterov, weight decay 5e-4 without norms and biases, label smoothing 0.1, batch 128",
        "test_error": means,
        "rows": rows,
    }
    FILE.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=float, nargs="+", default=[10, 20, 40])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 56])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/crossing"))
    options = parser.parse_args()
    data = open_data(options.data, size=32)
    for epochs in options.epochs:
        for seed in options.seeds:
            for depth in options.depths:
                if any((r["epochs"], r["depth"], r["seed"]) == (epochs, depth, seed) for r in read_rows()):
                    continue
                out = options.out / f"resnet{depth}-{epochs:g}-seed{seed}"
                run = Run(f"resnet{depth}-cifar", str(options.data), RECIPE, str(out), seed, epochs=epochs, speed=SPEED)
                began = time.perf_counter()
                result = train(run, data=data, resume=True, show=False)
                row = {
                    "depth": depth,
                    "epochs": epochs,
                    "seed": seed,
                    "test_error": round(result.test.top1, 2),
                    "val_error": round(result.val_error, 2),
                    "train_error": round(result.history[-1].train_error, 2),
                    "seconds": round(result.seconds),
                    "mode": result.speed,
                    "machine": machine(),
                }
                write([*read_rows(), row], data)
                print(f"{row['depth']} layers, {epochs:g} epochs, seed {seed}: {row['test_error']} %", flush=True)
                print(f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads", flush=True)


if __name__ == "__main__":
    main()
