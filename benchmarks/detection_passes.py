"""What each switch of the paper's table 9 gains on trained detectors: scales, mirrored images, boxes refined twice, ensembles.

    python -m benchmarks.detection_passes --data ../shared/data/bccd-voc --runs FOLDER/resnet18-seed0 FOLDER/resnet18-seed1 ...

The runs are seeds of one detector, such as ``benchmarks.detection`` leaves in its ``--ground``. A gain is the difference from the same
run alone, on the test images; an ensemble of two seeds is compared with the mean of the two. Nothing is chosen by these figures.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from benchmarks.common import SPEED, record
from deepres.data.detection import open_boxes
from deepres.detection import DetectRun, load_detector, measure_detector
from deepres.detection.combining import CombinedDetector
from deepres.training.speed import SPEEDS

NAME = "detection-passes"
SCALES = (0.8, 1.0, 1.2)
SWITCHES: dict[str, dict[str, Any]] = {
    "alone": {},
    "flip": {"flip": True},
    "scales": {"scales": SCALES},
    "refine": {"refine": True},
    "flip, scales and refine": {"flip": True, "scales": SCALES, "refine": True},
}
ENSEMBLES: dict[str, dict[str, Any]] = {
    "two seeds, boxes fused": {"join": "boxes"},
    "two seeds, joined at the proposals": {"join": "proposals"},
}


def gains(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation of each switch's gain in points of mAP@.5 and mAP, and its time relative to one pass."""
    alone, found = rows["alone"], {}
    pairs = list(itertools.combinations(range(len(alone)), 2))
    for name, mine in rows.items():
        usual = [[alone[i]] for i in range(len(alone))] if name in SWITCHES else [[alone[i] for i in pair] for pair in pairs]
        one: dict[str, Any] = {"n": len(mine)}
        for figure in ("ap50", "ap"):
            points = [
                100 * (row[figure] - statistics.fmean(other[figure] for other in others))
                for row, others in zip(mine, usual, strict=True)
            ]
            one[figure] = round(statistics.fmean(100 * row[figure] for row in mine), 2)
            one[f"{figure}_gain"] = round(statistics.fmean(points), 2)
            one[f"{figure}_deviation"] = round(statistics.stdev(points), 2) if len(points) > 1 else None
        one["time"] = round(
            statistics.median(row["seconds"] for row in mine) / statistics.median(r["seconds"] for r in alone), 2
        )
        found[name] = one
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", nargs="+", required=True, help="folders of trained detectors that differ by their seed")
    given = parser.parse_args()
    models = [load_detector(run) for run in given.runs]
    data = open_boxes(given.data, classes=models[0].config.classes)

    def measured(together: list[Any], options: dict[str, Any]) -> dict[str, float]:
        began = time.process_time()
        scores = measure_detector(CombinedDetector(together, **options).eval(), data.test, data.classes, speed=SPEEDS[SPEED])
        return {"ap50": scores.coco.ap50, "ap": scores.coco.ap, "seconds": round(time.process_time() - began, 2)}

    rows = {name: [measured([model], options) for model in models] for name, options in SWITCHES.items()}
    for name, options in ENSEMBLES.items():
        rows[name] = [measured(list(pair), options) for pair in itertools.combinations(models, 2)]
    what = f"table 9's switches on {len(models)} seeds of {DetectRun.read(given.runs[0]).net}, test images of {data}"
    record(NAME, {"what": what, "switches": gains(rows), "rows": rows})


if __name__ == "__main__":
    main()
