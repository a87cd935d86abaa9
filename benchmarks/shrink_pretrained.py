"""Shrinking a pretrained network that was fine-tuned: each part of the method against the last, beside rivals.

    deepres train --net efficientnet-lite0 --init pretrained --recipe fast-cifar --lr 0.04 --batch 64 --epochs 2 --size 96 \\
        --data ../shared/data/cifar10-jpeg --out runs/ground
    python -m benchmarks.shrink_pretrained --ground runs/ground --data ../shared/data/cifar10-jpeg --size 96 --epochs 2

All arms start from the same network, remove as many blocks and train on as long, with its answers as half of the loss. Blocks are
ranked by the rise of the loss alone, not by time, so an arm does not depend on a clock. Each finished arm is a JSON file in ``--out``;
what is there is not trained again, and an arm that is interrupted goes on from its checkpoint. ``--deletion`` measures the arms right
behind the deletion, without training. Test errors are those of the weights with the best validation error; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import rivals
from benchmarks.common import BF16, RESULTS, machine
from deepres.callback import Callback
from deepres.data import Batch, Data, open_data
from deepres.models import open_with_data
from deepres.shrinking import InverseCurriculum, ShrinkSchedule, Target
from deepres.training import Interrupted, Recipe, Run, Trainer, train

SPEED = "bf16-channels-last" if BF16 else "float32-channels-last"


def arms(target: Target) -> dict[str, Callable[[], InverseCurriculum | None]]:
    """Name -> the callback that shrinks; None trains the whole network on."""
    gradual = ShrinkSchedule.usual(target, trained=True)
    deleted = dataclasses.replace(gradual, removal="at-once")

    def ours(schedule: ShrinkSchedule, **changes: Any) -> Callable[[], InverseCurriculum]:
        return lambda: InverseCurriculum(dataclasses.replace(schedule, **changes), exact=True)

    def rival(kind: type[InverseCurriculum], schedule: ShrinkSchedule) -> Callable[[], InverseCurriculum]:
        return lambda: kind(schedule, exact=True)

    cut = rivals.at_once(target)
    return {
        "whole": lambda: None,
        "gradual": ours(gradual),
        "gradual, features": ours(gradual, features=1.0),
        "gradual, greedy, features": ours(gradual, select="greedy", features=1.0),
        "at once": ours(deleted),
        "at once, greedy": ours(deleted, select="greedy"),
        "at once, greedy, scale": ours(deleted, select="greedy", mend="scale"),
        "at once, greedy, map": ours(deleted, select="greedy", mend="map"),
        "at once, greedy, features": ours(deleted, select="greedy", features=1.0),
        "at once, greedy, map, features": ours(deleted, select="greedy", mend="map", features=1.0),
        "rival: responses": rival(rivals.Responses, cut),
        "rival: influence": rival(rivals.Influence, cut),
        "rival: random": rival(rivals.Random, cut),
        "rival: norm scale": rival(rivals.NormScale, dataclasses.replace(gradual, learn=0.0)),
    }


class Deletion(Callback):
    """Validation error right behind the deletion; ``stop`` ends the run there."""

    def __init__(self, curriculum: InverseCurriculum | None, stop: bool) -> None:
        self.curriculum, self.stop = curriculum, stop
        self.error: float | None = None

    def before_step(self, trainer: Trainer, batch: Batch) -> None:
        if self.error is None and (self.curriculum is None or self.curriculum.finished):
            self.error = trainer.measure("val", trainer.model).top1
            trainer.model.train()
            if self.stop:
                raise Interrupted("the deletion is measured")

    def state(self) -> dict[str, Any]:
        return {"error": self.error}

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        self.error = state["error"]


@dataclasses.dataclass
class Pretrained:
    """The trained network, its data, and where the arms are kept."""

    model: nn.Module
    data: Data
    recipe: Recipe
    out: Path
    stop: bool

    def run(self, name: str, target: str, seed: int) -> dict[str, Any]:
        """Train an arm, or read what it came to before."""
        slug = f"{name}-{target}-seed{seed}".replace(": ", "-").replace(", ", "-").replace(" ", "-").replace("=", "")
        path = self.out / f"{slug}{'-deletion' if self.stop else ''}.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        self.out.mkdir(parents=True, exist_ok=True)
        curriculum = arms(Target.parse(target))[name]()
        deletion = Deletion(curriculum, self.stop)
        where = None if self.stop else str(self.out / slug)
        run = Run("given", self.data.name, self.recipe, where, seed, speed=SPEED, memory="all")
        callbacks: list[Callback] = [*([curriculum] if curriculum is not None else []), deletion]
        found: dict[str, Any] = {"arm": name, "target": target, "seed": seed}
        began = time.perf_counter()
        try:
            result = train(run, resume=True, data=self.data, model=copy.deepcopy(self.model), callbacks=callbacks, show=False)
            found |= {"val_error": result.val_error, "test_error": result.test.top1, "test_examples": result.test.n}
        except Interrupted:
            if not self.stop or deletion.error is None:
                raise
        found |= {
            "deletion_error": deletion.error,
            "removed": curriculum.removed if curriculum is not None else [],
            "mended": [dataclasses.asdict(one) for one in curriculum.mended] if curriculum is not None else [],
            "seconds": round(time.perf_counter() - began),
            "machine": machine(),
        }
        path.write_text(json.dumps(found, indent=1))
        return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread and number of seeds of each arm's errors, by target."""
    table: dict[str, Any] = {}
    for target, arm in dict.fromkeys((row["target"], row["arm"]) for row in rows):
        of = [row for row in rows if (row["target"], row["arm"]) == (target, arm)]
        entry: dict[str, Any] = {"n": len(of)}
        for key in ("deletion_error", "val_error", "test_error"):
            values = [row[key] for row in of if row.get(key) is not None]
            if values:
                spread = round(statistics.stdev(values), 2) if len(values) > 1 else None
                entry[key] = {"mean": round(statistics.fmean(values), 2), "spread": spread}
        table.setdefault(target, {})[arm] = entry
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground", type=Path, required=True, help="folder of the run that is shrunk")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--targets", nargs="+", default=["blocks=5"])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=0.02, help="half of the ground's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="names of those to train [all]")
    parser.add_argument("--deletion", action="store_true", help="measure behind the deletion, without training")
    parser.add_argument("--out", type=Path, default=Path("runs/shrink-pretrained"))
    parser.add_argument("--record", help="name of the file in benchmarks/results to write at the end [none]")
    options = parser.parse_args()
    opened = open_with_data(options.ground, open_data(options.data, size=options.size), size=options.size)
    own = Run.read(options.ground).recipe
    assert isinstance(own, Recipe)
    recipe = dataclasses.replace(own, name="shrink", lr=options.lr, epochs=options.epochs)
    bench = Pretrained(opened.model, opened.data, recipe, options.out, options.deletion)
    rows = []
    for seed in options.seeds:
        for target in options.targets:
            for name in options.arms or arms(Target.parse(target)):
                row = bench.run(name, target, seed)
                rows.append(row)
                keys = ("target", "arm", "seed", "deletion_error", "val_error", "test_error", "seconds")
                print({key: row[key] for key in keys if row.get(key) is not None}, *row["removed"], flush=True)
    images = f"{len(opened.data.train):,} training images at {options.size} pixels"
    what = f"{options.ground.name}: {images}, {options.epochs:g} epochs, learning rate {options.lr:g}"
    table = {"what": what, "threads": torch.get_num_threads(), "errors": summary(rows), "rows": rows}
    print(json.dumps(table["errors"], indent=1))
    if options.record:
        text = json.dumps({"name": options.record, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **table}, indent=1)
        (RESULTS / f"{options.record}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
