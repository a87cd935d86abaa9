"""``deepres ghost``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import DataOption, check_out, default_out, keywords, say, shares, table
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.ghosting.options import GhostOptions
from deepres.models.options import OpenOptions
from deepres.options import DeviceOption


@dataclass(frozen=True, kw_only=True)
class Ghost(GhostOptions, DeviceOption, BuilderOption, OpenOptions, DataOption):
    """Make a ghost of a trained network: it skips blocks for the inputs that do not need them, and lets easy inputs exit early."""

    model: Positional[str]  # a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    out: Path | None = None  # folder for the ghost, report.html and ghost.json [runs/ghost-DATE]

    def run(self) -> int:
        from rich.console import Console

        from deepres.ghosting import ghost, save_ghost
        from deepres.ghosting.page import ghost_page, ghost_table
        from deepres.models import short_name
        from deepres.training.distribute import pick_device

        if self.budget is None and self.error is None:
            raise DeepresError(
                "give --budget, a share of the time such as 0.6, or --error, an allowed rise in points such as 0.3"
            )
        if self.error is None and (self.confirm, self.confidence) != (GhostOptions.confirm, GhostOptions.confidence):
            raise DeepresError(
                "--confirm and --confidence tell how --error is kept, and --budget limits the time alone; leave them out"
            )
        out = self.out or default_out("ghost")
        check_out(out)
        began = time.perf_counter()
        with shares(self.model) as progress:
            made = ghost(
                self.model,
                self.data,
                device=pick_device(self.device),
                progress=progress,
                log=say,
                **keywords(self, GhostOptions, OpenOptions),
            )
        save_ghost(made, out)
        Console().print(table(ghost_table(made).head, ghost_table(made).rows))
        say("")
        for line in made.summary():
            say(line)
        asked = f"--budget {self.budget:g}" if self.budget is not None else f"--error {self.error:g}"
        footer = f"Made by `deepres ghost {self.model} --data {self.data} {asked}` in {time.perf_counter() - began:.0f} s."
        name = short_name(self.model)
        say(f"\nReport: {ghost_page(made, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"Ghost: {out}")
        return 0
