"""Error by depth, epochs and recipe: CIFAR ResNets trained on the same files. From which budget does depth pay?

    python -m benchmarks.crossing --data ../shared/data/cifar10-jpeg --recipe muon-cifar --epochs 2 5 --depths 20 32 56 --seeds 0 1 2
    python -m benchmarks.crossing                          # trains nothing; writes the tables again

Each finished training is a row of benchmarks/results/crossing.json, and what is there already is not trained again, so the table
may grow over many sittings. A training that is interrupted goes on from its checkpoint in runs/crossing. Test errors are those of the
weights with the best validation error, on all test images; nothing is chosen by them. The means over the seeds are also the table from
which ``train --budget`` chooses, deepres/training/expected.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import deepres.training
from benchmarks.common import RESULTS
from benchmarks.trainings import FUSED_SPEED, is_recorded, read_rows, told_of
from deepres.data import open_data
from deepres.training import Run, recipe, train

FILE = RESULTS / "crossing.json"
TABLE = Path(deepres.training.__file__).parent / "expected.json"
KEY = ("depth", "recipe", "lr", "epochs")  # of what the seeds have in common
IMAGES, SIDE = 45_000, 32


def means_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean test error of each network, recipe, rate and number of epochs, in percent, as ``train --budget`` reads it."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEY), []).append(row)
    return [
        {
            "net": f"resnet{depth}-cifar",
            "recipe": recipe,
            "lr": lr,
            "epochs": epochs,
            "error": round(statistics.fmean(row["test_error"] for row in some), 2),
            "spread": round(statistics.stdev(row["test_error"] for row in some), 2) if len(some) > 1 else None,
            "n": len(some),
            "origin": "; ".join(dict.fromkeys(row["origin"] for row in some)),
        }
        for (depth, recipe, lr, epochs), some in groups.items()
    ]


def write(rows: list[dict[str, Any]]) -> None:
    """Write the rows, sorted, and the table of their means."""
    rows = sorted(rows, key=lambda row: tuple(row[name] for name in (*KEY, "seed")))
    data = "CIFAR-10 encoded as JPEG"
    what = f"Test error (%) of CIFAR ResNets by depth, recipe and epochs, {data}, {IMAGES:,} training images at {SIDE}x{SIDE}"
    means = means_of(rows)
    FILE.write_text(json.dumps({"name": "crossing", "what": what, "test_error": means, "rows": rows}, indent=1) + "\n")
    TABLE.write_text(json.dumps({"data": data, "images": IMAGES, "size": SIDE, "rows": means}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", default="fast-cifar")
    parser.add_argument("--lr", type=float, help="highest learning rate [the recipe's]")
    parser.add_argument("--epochs", type=float, nargs="+", default=[10, 20, 40])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 56])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/crossing"))
    options = parser.parse_args()
    write(read_rows(FILE))
    if options.data is None:
        return
    data = open_data(options.data, size=SIDE)
    if len(data.train) != IMAGES:
        parser.error(f"{options.data} has {len(data.train):,} training images, and the table is for {IMAGES:,}")
    lr = options.lr or recipe(options.recipe).lr
    for epochs in options.epochs:
        for seed in options.seeds:
            for depth in options.depths:
                key = {"depth": depth, "recipe": options.recipe, "lr": lr, "epochs": epochs, "seed": seed}
                if is_recorded(FILE, key):
                    continue
                out = options.out / f"resnet{depth}-{options.recipe}-{lr:g}-{epochs:g}-seed{seed}"
                name = f"resnet{depth}-cifar"
                run = Run(name, str(options.data), options.recipe, str(out), seed, epochs=epochs, lr=lr, speed=FUSED_SPEED)
                result = train(run, data=data, resume=True, show=False)
                row = {
                    **key,
                    **told_of(result),
                    "seconds": round(result.seconds),
                    "origin": f"benchmarks.crossing, {time.strftime('%Y-%m-%d')}",
                }
                write([*read_rows(FILE), row])
                print(f"{name}, {options.recipe}, {epochs:g} epochs, seed {seed}: {row['test_error']} %", flush=True)


if __name__ == "__main__":
    main()
