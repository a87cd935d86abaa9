"""Record the papers' claims at a scale: run `deepres paper all`, keep the outcomes with the machine that made them.

python -m benchmarks.paper                                    # all of them, in paper-quick.json
python -m benchmarks.paper --only transformer-degradation     # one, in a file of its own
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from benchmarks.common import record
from deepres.paper.experiments import experiment, served
from deepres.paper.lab import Lab, scale, timed
from deepres.paper.page import claim_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--only", help="an experiment of `deepres paper list`")
    parser.add_argument("--out", type=Path, default=Path("runs/paper-record"), help="one used before is continued")
    options = parser.parse_args()
    chosen = scale(options.scale)
    lab = Lab(chosen, options.out)
    outcomes = []
    for one in [experiment(options.only)] if options.only else served(chosen):
        outcome = timed(one.run, lab)
        print(one.name, outcome.holds, outcome.why, flush=True)
        plain = dataclasses.asdict(outcome)
        plain.pop("figures")
        for row, (_, ours, paper) in zip(plain["rows"], claim_table(outcome).rows, strict=True):
            row["text"], row["paper"] = ours, paper
        outcomes.append(plain)
    differs = outcomes[0]["differs"] if options.only else chosen.differs
    record(
        f"paper-{chosen.name}" + (f"-{options.only}" if options.only else ""),
        {"only": options.only, "scale": chosen.name, "differs": differs, "seeds": chosen.seeds, "outcomes": outcomes},
    )
