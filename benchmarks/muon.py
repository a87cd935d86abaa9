"""Few epochs with Muon for the convolutions, beside SGD at several rates: test errors by seed.

    python -m benchmarks.muon                                                          # digits, ResNet-8, a minute
    python -m benchmarks.muon --data ../shared/data/cifar10-jpeg --net resnet20-cifar --epochs 2 --rates 0.2

Each finished training is a row of benchmarks/results/muon.json, and what is there already is not trained again. Both have one cycle,
label smoothing and a weight decay of 5e-4 (Muon's convolutions none); Muon's rate is the recipe's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.trainings import is_recorded, read_rows, told_of
from deepres.data import open_data
from deepres.training import Recipe, Run, recipe, train

FILE = RESULTS / "muon.json"


def write(rows: list[dict[str, Any]]) -> None:
    table: dict[str, list[float]] = {}
    for row in rows:
        table.setdefault(f"{row['data']}, {row['net']}, {row['epochs']:g} epochs: {row['how']}", []).append(row["test_error"])
    found = {
        name: {"n": len(errors), "mean": round(statistics.fmean(errors), 2), "spread": round(statistics.stdev(errors), 2)}
        if len(errors) > 1
        else {"n": 1, "mean": errors[0], "spread": None}
        for name, errors in table.items()
    }
    what = "Test error (%) after few epochs, with Muon for the convolutions of residual branches and with SGD"
    FILE.write_text(json.dumps({"name": "muon", "what": what, "test_error": found, "rows": rows}, indent=1) + "\n")


def candidates(rates: list[float]) -> dict[str, Recipe]:
    ways = {"muon-cifar": recipe("muon-cifar")}
    return ways | {f"fast-cifar to {rate:g}": recipe("fast-cifar", lr=rate) for rate in rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="resnet8-cifar")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--speed", default="exact")
    options = parser.parse_args()
    name = Path(options.data).name
    data = open_data(options.data)
    for seed in options.seeds:
        for how, method in candidates(options.rates).items():
            key = {"data": name, "net": options.net, "epochs": options.epochs, "how": how, "seed": seed}
            if is_recorded(FILE, key):
                continue
            run = Run(options.net, options.data, method, seed=seed, epochs=options.epochs, speed=options.speed)
            result = train(run, data=data, show=False)
            row = {**key, **told_of(result), "seconds": round(result.seconds, 1)}
            write([*read_rows(FILE), row])
            print(f"{how}, seed {seed}: {row['test_error']} %", flush=True)


if __name__ == "__main__":
    main()
