"""``deepres paper``."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import default_out, first_of_several, keywords, resumable, say, table
from deepres.options import parse_seconds
from deepres.paper.options import SPEED, ScaleOptions


@dataclass(frozen=True, kw_only=True)
class Paper(ScaleOptions):
    """Reproduce the claims of the ResNet papers as runs: list them, run one, or all that fit a time budget."""

    name: Positional[str] = "list"  # an experiment, `all`, or `list`
    scale: str = "quick"  # quick (digits, minutes), or the paper's own schedules: cifar, imagenet (with --data FOLDER)
    # time, such as 20m or 2h: of `all`, the cheapest experiments that fit are run; one experiment stops behind it, between two
    # trainings, and goes on from there when the command is given again with the same --out [no limit]
    budget: str | None = None
    speed: str = SPEED  # precision and memory layout, by the names that `train` has
    # folder for report.html, outcomes.json and the runs; one used before is continued [runs/paper-DATE]
    out: Path | None = None

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.paper.experiments import EXPERIMENTS, experiment, served
        from deepres.paper.lab import Lab, scale
        from deepres.paper.page import claim_table, differs, paper_page, verdict
        from deepres.paper.plan import Planner

        console = Console()
        if self.name == "list":
            rows = [[one.name, one.title, one.source] for one in EXPERIMENTS.values()]
            console.print(table(["name", "claim", "where"], rows))
            return 0
        chosen_scale = scale(self.scale).changed(**keywords(self, ScaleOptions))
        chosen = served(chosen_scale) if self.name == "all" else [experiment(self.name)]
        first = first_of_several(self.out)
        out = self.out or default_out("paper")
        budget = parse_seconds(self.budget) if self.budget else None
        planner = Planner(chosen, budget, Console(stderr=True))
        ends = time.perf_counter() + budget if budget is not None and self.name != "all" else math.inf
        lab = Lab(chosen_scale, out, self.speed, planner.show_epoch, ends)
        outcomes = []
        lab.at(chosen[0].kind).data  # noqa: B018 (unknown data is told before anything is trained)
        with resumable(f"deepres paper {self.name} --out {out}"), planner:
            for outcome in planner.outcomes(lab):
                outcomes.append(outcome)
                if not first:
                    continue
                say(f"\n{outcome.title} ({outcome.source})\n{outcome.claim}")
                console.print(table(claim_table(outcome).head, claim_table(outcome).rows))
                say(f"{verdict(outcome)}\n{differs(outcome)}")
                out.mkdir(parents=True, exist_ok=True)
                (out / "outcomes.json").write_text(js.dumps([dataclasses.asdict(one) for one in outcomes], indent=1))
        if not first:
            return 0
        if planner.left_out:
            say(f"\nDid not fit the budget of {self.budget}: {', '.join(planner.left_out)}.")
        footer = f"Made by `deepres paper {self.name} --scale {self.scale}` in {sum(o.seconds for o in outcomes):.0f} s."
        say(f"\nThe whole: {paper_page(outcomes, footer).write(out / 'report.html')}")
        return 1 if planner.left_out else 0
