"""``deepres.optimize`` beside the engines as their users run them: one alternating run for each network and batch.

    python -m benchmarks.engines --nets resnet50 vit-s --batches 1 32 --minutes 20
    python -m benchmarks.engines --nets runs/photos --data photos

Each candidate is a process of its own; within a turn it makes as many calls as took a fifth of a second when it was built, two candidates
at a time. Of each tuned OpenVINO there is a second process: the ratio of the two, ``copies``, is what a ratio of 1 looks like on this
machine. A row, one network at one batch, is written when it is done, and rows that are in ``benchmarks/results/engines-KIND.json`` are
skipped, so that the run can be stopped and continued; KIND is the kind of the machine. The networks by name have random weights and get
noise, so their answers mean nothing and int8 is not refused; a trained network (``--data``) is measured on its validation images, and
int8 is refused where it raises the error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BF16, RESULTS, Remote, machine, machine_kind, record, summary
from benchmarks.engine_rivals import CONVERTING, COPIES, OURS, RANDOM, RIVALS, Case, build_candidate, choose
from deepres.evaluation import timing


def measure_row(case: Case, only: tuple[str, ...], turns: int, seconds: float) -> dict[str, Any]:
    """Images per second of every candidate, and ratios to the best rival of the same precision."""
    wanted = [how for how in (*RIVALS, *COPIES, *OURS) if not only or COPIES.get(how, how) in only]
    if case.batch == 1:  # as tuned for latency
        wanted = [how for how in wanted if "throughput" not in how]
    if not BF16:  # emulated, many times slower
        wanted = [how for how in wanted if _precision(how) != "bf16"]
    # candidates that are compared take their turns one after the other: the machine changes within seconds
    wanted.sort(key=lambda how: ("float32", "bf16", "int8").index(_precision(how)))
    chosen: dict[str, Any] = {"chosen": {}, "candidates": []}
    if any(how in OURS for how in wanted):
        chooser = Remote(choose, case)
        chosen = json.loads(chooser.name)
        chooser.close()
    remotes: dict[str, Remote] = {}
    failed = {how: _reason(chosen["candidates"], OURS[how]) for how in wanted if how in OURS and how not in chosen["chosen"]}

    def build(how: str) -> None:
        try:
            remotes[how] = Remote(build_candidate, COPIES.get(how, how), case, json.dumps(chosen["chosen"].get(how)))
        except RuntimeError as error:
            failed[how] = str(error)[:300]

    try:
        with ThreadPoolExecutor(2) as pool:
            for stage in (CONVERTING, wanted):
                list(pool.map(build, [how for how in stage if how in wanted and how not in remotes and how not in failed]))
        remotes = {how: remotes[how] for how in wanted if how in remotes}
        built = {how: json.loads(remote.name) for how, remote in remotes.items()}
        took = timing.alternate(remotes, torch.device("cpu"), turns=turns, warmup=1, seconds=seconds)
    finally:
        for remote in remotes.values():
            remote.close()
    times = {how: [value / built[how]["calls"] for value in values] for how, values in took.items()}
    return {
        "batch": case.batch,
        "trained": case.data is not None,
        "candidates": summary(times, case.batch, next(iter(times))),
        "names": {how: one["name"] for how, one in built.items()},
        "failed": failed,
        "against_best_rival": {how: found for how in OURS if (found := _against_best(how, times))},
        "copies": {RIVALS[how]: found for copy, how in COPIES.items() if (found := _ratio(times, copy, how))},
        "int8_against_bf16": _ratio(times, "deepres int8", "deepres bf16 close"),
        "measured_by_optimize": chosen["candidates"],
    }


def _precision(how: str) -> str:
    return (RIVALS | OURS)[COPIES.get(how, how)]


def _reason(candidates: list[dict[str, Any]], precision: str) -> str:
    said = [f"{one['engine']}: {one['problem']}" for one in candidates if one["precision"] == precision and one["problem"]]
    return "; ".join(said) or "no engine keeps the answers"


def _against_best(how: str, times: dict[str, list[float]]) -> dict[str, Any] | None:
    """Speed of ours relative to the fastest rival of its precision, by the turns' ratios; above 1 ours is faster."""
    rivals = [rival for rival, precision in RIVALS.items() if precision == OURS[how] and rival in times]
    if how not in times or not rivals:
        return None
    best = min(rivals, key=lambda rival: statistics.median(times[rival]))
    return {"rival": best, **(_ratio(times, how, best) or {})}


def _ratio(times: dict[str, list[float]], mine: str, other: str) -> dict[str, float] | None:
    if mine not in times or other not in times:
        return None
    ratios = sorted(theirs / own for own, theirs in zip(times[mine], times[other], strict=True))
    return {"ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3), "highest": round(ratios[-1], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=RANDOM[:-1], help=f"of {', '.join(RANDOM)}; with --data any network")
    parser.add_argument("--data", help="data of the networks, which are trained then; by default weights and inputs are random")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--only", nargs="+", default=[], choices=[*RIVALS, *OURS], help="candidates; all by default")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="begin no further turn of a row after this long, but take three"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further row after this long")
    parser.add_argument("--choosing", type=float, default=60.0, help="seconds for the turns in which optimize chooses")
    parser.add_argument("--error", type=float, default=0.3, help="points by which int8 may raise a trained network's error")
    parser.add_argument("--name", default=f"engines-{machine_kind()}", help="of the file in benchmarks/results")
    parser.add_argument("--again", action="store_true", help="measure rows again that are in the file")
    options = parser.parse_args()
    if options.data is None and (unknown := [net for net in options.nets if net not in RANDOM]):
        parser.error(f"{', '.join(unknown)}: a trained network needs --data; by name there are {', '.join(RANDOM)}")
    path = RESULTS / f"{options.name}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    began = time.monotonic()
    for net in options.nets:
        for batch in options.batches:
            key = f"{Path(net).name}, batch {batch}"
            if key in rows and not options.again:
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print(f"stopped before {key}; the same command goes on", flush=True)
                return
            with tempfile.TemporaryDirectory() as folder:
                case = Case(net, batch, folder, options.data, options.choosing, options.error)
                rows[key] = measure_row(case, tuple(options.only), options.turns, options.seconds)
            rows[key] |= {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
            record(options.name, {"what": "inference engines side by side, one process each", "rows": rows})


if __name__ == "__main__":
    main()
