"""``deepres ghost``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepres.cli.common import (
    default_out,
    say,
    shares,
    table,
)
from deepres.errors import DeepresError


@dataclass(frozen=True)
class Ghost:
    """Make a trained network spend its depth by input: blocks are passed through, and decided inputs leave early."""

    model: Positional[str]  # a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    budget: float | None = None  # the most of the whole network's time that a call may take on average, such as 0.6
    error: float | None = None  # or: the points that the error may rise, such as 0.3, and the fastest that keeps it
    deadline: float | None = None  # milliseconds for a call; what is not answered by then leaves at the next exit
    batch: int = 32  # inputs of a call, for which the budget is measured
    gates: Literal["both", "fitted", "fixed", "none"] = "both"  # blocks chosen by input, or the same for all; both are tried
    exits: bool = True  # whether inputs may leave early
    examples: int = 2000  # of the training split, to fit gates on, and of the validation split, to choose on
    confirm: int = 4000  # further validation examples, at most, on which a rise of the error is confirmed
    weights: Path | None = None  # a state_dict for a network that is built by name
    size: int | None = None  # side of the input in pixels [what the network was trained with]
    device: str = "auto"  # auto, cpu, cuda
    out: Path | None = None  # folder for the ghost, report.html and ghost.json [runs/ghost-DATE]

    def run(self) -> int:
        from rich.console import Console

        from deepres.ghosting import ghost, save_ghost
        from deepres.ghosting.page import ghost_page, ghost_table
        from deepres.models import short_name
        from deepres.training.distribute import pick_device

        if self.budget is None and self.error is None:
            raise DeepresError(
                "what shall be kept? Give --budget, a share of the time such as 0.6, or --error, points such as 0.3"
            )
        out = self.out or default_out("ghost")
        began = time.perf_counter()
        with shares(self.model) as watch:
            made = ghost(
                self.model,
                self.data,
                budget=self.budget,
                error=self.error,
                deadline=self.deadline / 1000 if self.deadline is not None else None,
                batch=self.batch,
                gates=self.gates,
                exits=self.exits,
                examples=self.examples,
                confirm=self.confirm,
                weights=self.weights,
                size=self.size,
                device=pick_device(self.device),
                progress=watch,
                log=say,
            )
        save_ghost(made, out)
        Console().print(table(ghost_table(made).head, ghost_table(made).rows))
        say("")
        for line in made.summary():
            say(line)
        asked = f"--budget {self.budget:g}" if self.budget is not None else f"--error {self.error:g}"
        footer = f"Made by `deepres ghost {self.model} --data {self.data} {asked}` in {time.perf_counter() - began:.0f} s."
        name = short_name(self.model)
        say(f"\nThe whole: {ghost_page(made, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"The ghost: {out}")
        return 0
