"""Three levers in one table: a network that is shrunk, made a ghost of, and computed in int8, against the network as it is.

    deepres train --net efficientnet-lite0 --init pretrained --recipe fast-cifar --lr 0.04 --batch 64 --epochs 2 --size 96 \\
        --data ../shared/data/cifar10-jpeg --out runs/ground
    python -m benchmarks.levers --ground runs/ground --data ../shared/data/cifar10-jpeg --size 96 --seeds 1

Every network (whole, shrunk, ghost, ghost of the shrunk one) runs in PyTorch as it is, and on ``--engine`` optimized (bf16 where the
processor computes it, else float32) and in int8. Each lever is set on the validation split: blocks are ranked and ghosts chosen there,
and int8 is refused where its error rises by more than ``--int8-error`` there. The test split is measured at the end. Times are those of
test images in alternating turns, at batch 1 and 32. A network that is made is kept in ``--out``, as are the errors of a row, so the run
can be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deepres
from benchmarks.common import SPEED, record
from deepres.data import Data, open_data
from deepres.engines.engine import Precision, computes_bf16
from deepres.engines.inputs import some_inputs
from deepres.errors import DeepresError
from deepres.evaluation import measure
from deepres.evaluation.timing import alternate
from deepres.ghosting import load_ghost, save_ghost
from deepres.models import open_model, open_with_data
from deepres.training import Recipe, Run

NETWORKS = ("whole", "shrunk", "ghost", "ghost of shrunk")
RUNTIMES = ("as it is", "optimized", "int8")
AS_IS = f"{NETWORKS[0]}, {RUNTIMES[0]}"
BATCHES = (1, 32)
SINGLE = ("whole, int8", "shrunk, as it is", "ghost, as it is")  # each lever alone; their product is what all three could give
ALL = "ghost of shrunk, int8"


@dataclasses.dataclass(frozen=True)
class Levers:
    """The trained network, its data, how the levers are set, and where what was made is kept."""

    ground: Path
    data: Data
    out: Path
    target: str  # of shrinking
    epochs: float  # of shrinking
    error: float  # points that a ghost's validation error may rise
    int8_error: float  # and int8's
    examples: int  # to fit and choose a ghost on
    engine: str
    batch: int = BATCHES[-1]

    def network(self, name: str, seed: int) -> nn.Module:
        """One of ``NETWORKS``, made, or as the folder has it."""
        folder = self.out / f"seed{seed}"
        if name == "whole":
            return open_with_data(self.ground, self.data, size=self.data.prepare.size).model.eval()
        if name == "shrunk":
            return self._shrunk(folder / "shrunk", seed)
        path = folder / name.replace(" ", "-")
        if not (path / "ghost.safetensors").exists():
            torch.manual_seed(seed)
            net = self.network("whole" if name == "ghost" else "shrunk", seed)
            made = deepres.ghost(
                net,
                self.data,
                error=self.error,
                gates="none",
                examples=self.examples,
                confirm=10**6,
                batch=self.batch,
                log=print,
            )
            print(name, *made.summary(), sep="\n  ", flush=True)
            part = path.with_name(f".{path.name}")
            save_ghost(made, part)
            os.replace(part, path)
        return load_ghost(path)[0]

    def _shrunk(self, path: Path, seed: int) -> nn.Module:
        if not (path / "shrink.json").exists():
            own = Run.read(self.ground).recipe
            assert isinstance(own, Recipe)
            recipe = dataclasses.replace(own, name="shrink", lr=own.lr / 2, epochs=self.epochs)
            options: dict[str, Any] = {"recipe": recipe, "seed": seed, "speed": SPEED, "memory": "all"}
            made = deepres.shrink(
                self.network("whole", seed), self.data, self.target, **options, out=path, resume=path.exists(), show=False
            )
            print("shrunk", *made.summary(), sep="\n  ", flush=True)
        return open_model(path).model.eval()

    def running(self, network: nn.Module, runtime: str) -> nn.Module:
        """``network`` as one of ``RUNTIMES`` computes it. Raises ``DeepresError`` where int8 raises the error too much."""
        if runtime == "as it is":
            return network
        example = some_inputs(self.data.val, self.data.prepare, self.batch)[0]
        if runtime == "int8":
            return deepres.optimize(
                network, example, engine=self.engine, precision="int8", data=self.data, error=self.int8_error, seconds=2.0
            )
        precision: Precision = "bf16" if computes_bf16(example.device) else "float32"
        return deepres.optimize(network, example, engine=self.engine, precision=precision, answers="close")

    def rows(self, seed: int, *, times: bool) -> dict[str, nn.Module | DeepresError]:
        """Every network on every runtime, or why it is refused. Without ``times`` those alone whose errors are not known."""
        found: dict[str, nn.Module | DeepresError] = {}
        for name in NETWORKS:
            runtimes = [one for one in RUNTIMES if times or not self._errors_file(f"{name}, {one}", seed).exists()]
            if not runtimes:
                continue
            network = self.network(name, seed)
            for runtime in runtimes:
                try:
                    found[f"{name}, {runtime}"] = self.running(network, runtime)
                except DeepresError as refused:
                    print(f"{name}, {runtime}: {refused}", flush=True)
                    found[f"{name}, {runtime}"] = refused
        return found

    def errors(self, key: str, model: nn.Module | DeepresError, seed: int) -> dict[str, Any]:
        """Errors of a row in percent, measured, or as the folder has them."""
        path = self._errors_file(key, seed)
        if path.exists():
            return dict(json.loads(path.read_text()))
        found: dict[str, Any] = {"refused": str(model)} if isinstance(model, DeepresError) else self._measured(model)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found))
        os.replace(part, path)
        print(key, found, flush=True)
        return found

    def _errors_file(self, key: str, seed: int) -> Path:
        return self.out / f"seed{seed}" / f"{key.replace(', ', '-').replace(' ', '-')}.json"

    def _measured(self, model: nn.Module) -> dict[str, Any]:
        data = self.data
        return {
            f"{name}_error": measure(model, split, data.prepare, data.classes, batch=self.batch).top1
            for name, split in (("val", data.val), ("test", data.test))
        }

    def speeds(self, models: dict[str, nn.Module], turns: int, images: int) -> dict[str, dict[str, list[float]]]:
        """Images per second of each row in each turn, by batch."""
        inputs = some_inputs(self.data.test, self.data.prepare, images)[0]
        found = {}
        for batch in BATCHES:
            some = inputs if batch > 1 else inputs[: max(1, images // 4)]
            calls: dict[str, Callable[[], object]] = {key: partial(_over, model, some, batch) for key, model in models.items()}
            took = alternate(calls, some.device, turns=turns, warmup=1)
            found[str(batch)] = {key: [len(some) / value for value in values] for key, values in took.items()}
        return found


@torch.inference_mode()
def _over(model: nn.Module, images: Tensor, batch: int) -> None:
    for part in images.split(batch):
        model(part)


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors and speeds of every row over the seeds, each seed with ``errors`` and ``speeds``; ratios are to the network as it is."""
    table: dict[str, Any] = {}
    for key in seeds[0]["errors"]:
        known = [one for one in seeds if "test_error" in one["errors"][key]]
        row: dict[str, Any] = {
            "n": len(known),
            "refused": [o["errors"][key]["refused"] for o in seeds if "refused" in o["errors"][key]],
        }
        for name in ("val_error", "test_error"):
            values = [one["errors"][key][name] for one in known]
            if values:
                row[name] = {"mean": round(statistics.fmean(values), 2), "spread": _spread(values)}
        row["speed"] = {str(batch): _speed(known, key, str(batch)) for batch in BATCHES} if known else {}
        table[key] = row
    for batch in map(str, BATCHES):
        ratios = [table[key]["speed"][batch]["ratio"] for key in SINGLE if table[key]["speed"]]
        if len(ratios) == len(SINGLE) and table[ALL]["speed"]:
            table[ALL]["speed"][batch]["product_of_single"] = round(math.prod(ratios), 2)
    return table


def _spread(values: list[float]) -> float | None:
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


def _speed(seeds: list[dict[str, Any]], key: str, batch: str) -> dict[str, Any]:
    rates = [rate for one in seeds for rate in one["speeds"][batch][key]]
    ratios = [
        mine / whole
        for one in seeds
        for mine, whole in zip(one["speeds"][batch][key], one["speeds"][batch][AS_IS], strict=True)
    ]
    return {
        "n": len(rates),
        "images_per_second": round(statistics.median(rates), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground", type=Path, required=True, help="folder of the trained network's run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--target", default="blocks=6", help="of shrinking")
    parser.add_argument("--epochs", type=float, default=1.0, help="of shrinking")
    parser.add_argument("--error", type=float, default=0.5, help="points that a ghost's validation error may rise")
    parser.add_argument("--int8-error", type=float, default=0.3)
    parser.add_argument("--examples", type=int, default=2000, help="to fit a ghost and to choose it on; the rest confirm it")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--images", type=int, default=512, help="of a turn at batch 32; a quarter of them at batch 1")
    parser.add_argument("--out", type=Path, default=Path("runs/levers"))
    parser.add_argument("--no-times", action="store_true", help="only make the networks and measure their errors")
    options = parser.parse_args(arguments)
    opened = open_with_data(options.ground, open_data(options.data, size=options.size), size=options.size)
    levers = Levers(
        options.ground,
        opened.data,
        options.out,
        options.target,
        options.epochs,
        options.error,
        options.int8_error,
        options.examples,
        options.engine,
    )
    seeds = []
    for seed in range(options.seeds):
        (options.out / f"seed{seed}").mkdir(parents=True, exist_ok=True)
        rows = levers.rows(seed, times=not options.no_times)
        errors = {key: levers.errors(key, model, seed) for key, model in rows.items()}
        running = {key: model for key, model in rows.items() if isinstance(model, nn.Module)}
        if not options.no_times:
            seeds.append({"errors": errors, "speeds": levers.speeds(running, options.turns, options.images)})
    if seeds:
        data = opened.data
        sizes = {name: len(getattr(data, name)) for name in ("train", "val", "test")}
        about = {
            "what": f"{opened.opened.name} on {data.name} at {options.size} pixels",
            "engine": options.engine,
            "seeds": options.seeds,
        }
        set_by = {name: getattr(options, name) for name in ("target", "epochs", "error", "int8_error", "examples", "turns")}
        record("levers", {**about, **set_by, "images": sizes, "rows": summary(seeds)})


if __name__ == "__main__":
    main()
