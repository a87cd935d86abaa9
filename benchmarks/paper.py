"""Record the paper's claims at a scale: run `deepres paper all`, keep the outcomes with the machine that made them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from benchmarks.common import record
from deepres.paper.experiments import served
from deepres.paper.lab import Lab, scale, timed
from deepres.paper.page import claim_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--out", type=Path, default=Path("runs/paper-record"), help="one used before is continued")
    options = parser.parse_args()
    chosen = scale(options.scale)
    lab = Lab(chosen, options.out)
    outcomes = []
    for one in served(chosen):
        outcome = timed(one.run, lab)
        print(one.name, outcome.holds, outcome.why, flush=True)
        plain = dataclasses.asdict(outcome)
        plain.pop("figures")
        for row, (_, ours, paper) in zip(plain["rows"], claim_table(outcome).rows, strict=True):
            row["text"], row["paper"] = ours, paper
        outcomes.append(plain)
    record(
        f"paper-{chosen.name}",
        {"scale": chosen.name, "differs": chosen.differs, "seeds": chosen.seeds, "outcomes": outcomes},
    )
