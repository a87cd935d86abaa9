"""A recipe with one ingredient changed at a time: errors over the seeds, on the same files and in the same number of epochs.

    python -m benchmarks.ablation --data ../shared/data/cifar10-jpeg                       # muon-cifar, ResNet-20, 2 epochs, 3 seeds
    python -m benchmarks.ablation --data ../shared/data/cifar10-jpeg --recipe fast-cifar --epochs 10 --only "as it is" "batches of 64"

Each finished training is a row of benchmarks/results/ablation.json, and what is there already is not trained again, so the table may
grow over many sittings. What is kept of a recipe is chosen by the validation error; the test error is told beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine
from benchmarks.trainings import FUSED_SPEED, is_recorded, read_rows, told_of
from deepres.data import open_data
from deepres.training import Recipe, Run, recipe, train

FILE = RESULTS / "ablation.json"
AS_IT_IS = "as it is"


def changes_of(base: Recipe) -> dict[str, dict[str, Any]]:
    """What is changed, by what the table calls it: fields of ``Recipe``, or options of the network under ``options``."""
    other = recipe("fast-cifar" if base.optimizer == "muon-sgd" else "muon-cifar")
    by_other = {"optimizer": other.optimizer, "nesterov": other.nesterov, "lr": other.lr}
    return {
        AS_IT_IS: {},
        "Nesterov for all weights" if other.optimizer == "sgd" else "Muon for convolutions": by_other,
        "half the rate": {"lr": base.lr / 2},
        "twice the rate": {"lr": base.lr * 2},
        "four times the rate": {"lr": base.lr * 4},
        "batches of 64": {"batch": 64},
        "batches of 256": {"batch": 256},
        "no label smoothing": {"label_smoothing": 0.0},
        "label smoothing of 0.2": {"label_smoothing": 0.2},
        "no weight decay": {"weight_decay": 0.0},
        "weight decay of 0.002": {"weight_decay": 2e-3},
        "weight decay of norms too": {"decay_norms": True},
        "alternating flips": {"augment": "pad-crop-alternating-flip"},
        "flips without crops": {"augment": "flip"},
        "no random crops or flips": {"augment": "none"},
        "whitened first convolution": {"whiten": True},
        "three quarters of the side for half of the run": {"sizes": ((0.5, 0.75), (1.0, 1.0))},
        "averaged weights, 0.99 a step": {"ema": 0.99},
        "warm-up over a tenth": {"warmup": 0.1},
        "momentum of 0.8": {"momentum": 0.8},
        "blocks start as the identity": {"options": {"zero_init": True}},
    }


def write(rows: list[dict[str, Any]]) -> None:
    what = "Errors (%) of a recipe with one ingredient changed at a time, CIFAR-10 encoded as JPEG, 45,000 training images at 32x32"
    told = {"name": "ablation", "date": time.strftime("%Y-%m-%d"), "machine": machine(), "what": what, "rows": rows}
    FILE.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="muon-cifar")
    parser.add_argument("--net", default="resnet20-cifar")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="changes, as the table calls them [all]")
    options = parser.parse_args()
    data = open_data(options.data, size=32)
    changes = changes_of(recipe(options.recipe))
    for change in options.only or changes:
        if change not in changes:
            parser.error(f"no change is called {change!r}; there are {', '.join(changes)}")
    for seed in options.seeds:
        for change in options.only or changes:
            key = {"recipe": options.recipe, "net": options.net, "epochs": options.epochs, "change": change, "seed": seed}
            if is_recorded(FILE, key):
                continue
            fields = dict(changes[change])
            shape = fields.pop("options", {})
            changed = dataclasses.replace(recipe(options.recipe), **fields)
            run = Run(
                options.net, str(options.data), changed, seed=seed, epochs=options.epochs, options=shape, speed=FUSED_SPEED
            )
            result = train(run, data=data, show=False)
            row = {**key, **told_of(result)}
            write([*read_rows(FILE), row])
            print(f"{change}, seed {seed}: {row['val_error']} % validation, {row['test_error']} % test error", flush=True)


if __name__ == "__main__":
    main()
