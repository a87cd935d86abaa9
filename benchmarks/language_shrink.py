"""A quarter of a language model's parts removed: Inverse Curriculum Training beside rankings, each followed by equally many steps.

    python -m benchmarks.language_shrink --data tinyshakespeare.txt --seeds 3 --work runs/language-shrink

The network is trained once a seed, in ``--work``, where an interrupted run continues. Each way and seed leaves a file there too, and
what has one is not computed again, so that several processes can share the ways. Every way has the same data, steps, rates and teacher,
and the parts that go are counted, not timed, so that a loaded machine changes nothing but ``seconds``.
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

import deepres
from benchmarks import rivals
from benchmarks.common import BF16, record
from benchmarks.shrink import thinned
from deepres import Run
from deepres.data import Data, open_data
from deepres.evaluation import measure
from deepres.models import load
from deepres.nn import parameters
from deepres.nn.transformer import Transformer
from deepres.shrinking import InverseCurriculum, ShrinkSchedule, Target
from deepres.training import Recipe, recipe

NAME = "language-shrink"
LAYERS, BATCH, CONTEXT = 12, 24, 64  # of gpt-tiny, 128 wide
STEPS, FINE_STEPS = 1600, 320  # of the training, and of what each way does
LR, FINE_LR = 6e-3, 1.5e-3
PARTS = 18  # of 24 remain
SPEED = "bf16" if BF16 else "float32"
QUARTER, HELD = Target("blocks", PARTS), Target("loss", 0.02)
WAYS: dict[str, Callable[[], InverseCurriculum | None]] = {
    "inverse": lambda: InverseCurriculum(schedule(QUARTER), exact=True),
    "lesion scores": lambda: rivals.Lesions(rivals.at_once(QUARTER), exact=True),
    "block influence": lambda: rivals.Influence(rivals.at_once(QUARTER), exact=True),
    "last layers": lambda: rivals.LastLayers(rivals.at_once(QUARTER), exact=True),
    "whole, trained on": lambda: None,
    "inverse, loss=+0.02": lambda: InverseCurriculum(schedule(HELD), exact=True),
}


def schedule(target: Target) -> ShrinkSchedule:
    return dataclasses.replace(ShrinkSchedule.usual(target, trained=True), constrain=0.4)


def steps(count: int, lr: float) -> Recipe:
    return dataclasses.replace(recipe("language-muon", lr=lr, batch=BATCH), epochs=None, iterations=count)


def whole(data: Data, seed: int, work: Path) -> Transformer:
    """The trained network, from ``work`` where it is there."""
    out = work / f"whole-{seed}"
    if not (out / "result.json").exists():
        run = Run(
            "gpt-tiny",
            data.name,
            steps(STEPS, LR),
            str(out),
            seed,
            speed=SPEED,
            options={"depth": LAYERS},
        )
        deepres.train(run, resume=out.exists(), data=data, show=False)
    model = load(out)
    assert isinstance(model, Transformer)
    return model


def test_loss(model: Transformer, data: Data) -> float:
    return round(measure(model, data.test, data.prepare, data.classes).loss, 4)


def looked_at(data: Data) -> Data:
    """With a quarter of the validation pieces, by which a held loss is judged, and few test pieces: losses are measured afterwards."""
    few = {name: thinned(getattr(data, name), every) for name, every in (("val", 4), ("test", 64))}
    return dataclasses.replace(data, val=data.val.take(few["val"]), test=data.test.take(few["test"]))


def one_way(model: Transformer, data: Data, way: str, seed: int) -> dict[str, Any]:
    curriculum, began = WAYS[way](), time.perf_counter()
    run = Run("gpt-tiny", data.name, steps(FINE_STEPS, FINE_LR), seed=seed, speed=SPEED)
    callbacks = [] if curriculum is None else [curriculum]
    result = deepres.train(
        run,
        data=looked_at(data),
        model=copy.deepcopy(model),
        callbacks=callbacks,
        show=False,
    )
    assert isinstance(result.model, Transformer)
    removed = [] if curriculum is None else sorted(int(path.split(".")[-1]) for path in curriculum.removed)
    return {
        "way": way,
        "seed": seed,
        "test_loss": test_loss(result.model, data),
        "removed": [f"{i} {model.config.blocks[i]}" for i in removed],
        "weights": round(parameters(result.model) / parameters(model), 3),
        "seconds": round(time.perf_counter() - began, 1),
    }


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of the rise of the loss above the network that was given, and how many parts went."""
    given = {row["seed"]: row for row in rows if row["way"] == "whole"}
    found = {}
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way and row["seed"] in given]
        rises = [row["test_loss"] - given[row["seed"]]["test_loss"] for row in mine]
        if mine:
            found[way] = {
                "n": len(mine),
                "test_rise": round(statistics.fmean(rises), 4),
                "deviation": round(statistics.stdev(rises), 4) if len(mine) > 1 else None,
                "parts_removed": round(statistics.fmean(len(row["removed"]) for row in mine), 1),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the text, tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=["whole", *WAYS], default=["whole", *WAYS])
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/language-shrink"),
        help="where networks and rows are",
    )
    given = parser.parse_args()
    data = open_data(given.data, size=CONTEXT)
    for seed in range(given.seeds):
        model = whole(data, seed, given.work)
        for way in given.ways:
            path = given.work / f"{way.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                found = (
                    {"way": way, "seed": seed, "test_loss": test_loss(model, data)}
                    if way == "whole"
                    else one_way(model, data, way, seed)
                )
                path.write_text(json.dumps(found))
                print(found, flush=True)
    rows = [json.loads(path.read_text()) for path in sorted(given.work.glob("*.json"))]
    if any(row["way"] == "whole" for row in rows):
        about = f"gpt-tiny of {LAYERS} layers on the characters of tinyshakespeare, batches of {BATCH} x {CONTEXT}"
        what = f"{about}; {STEPS} steps of training, then {FINE_STEPS} for each way, to {PARTS} of {2 * LAYERS} parts"
        record(
            NAME,
            {
                "what": what,
                "lr": [LR, FINE_LR],
                "speed": SPEED,
                "rows": rows,
                "ways": over_seeds(rows),
            },
        )


if __name__ == "__main__":
    main()
