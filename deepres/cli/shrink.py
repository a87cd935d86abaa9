"""``deepres shrink``."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import (
    COMMAND,
    DataOption,
    default_out,
    discard_options,
    first_of_several,
    keywords,
    resumable,
    save_options,
    saved_options,
    say,
    table,
)
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.models.options import OpenOptions
from deepres.shrinking.options import ShrinkOptions
from deepres.training.run import RunOptions

OLD_OPTIONS = {"press": "constrain"}  # in folders that were written before


@dataclass(frozen=True, kw_only=True)
class Shrink(ShrinkOptions, BuilderOption, OpenOptions, RunOptions, DataOption):
    """Train a network and remove the blocks that it needs least, until it meets a target of time, size or error."""

    # a name (trained from scratch), a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER; needed without --resume
    model: Positional[str | None] = None
    # what remains: time=, macs=, params= or blocks=, or the allowed rise of the error in points, error=+0.3, or of the loss in
    # nats, loss=+0.02; one network for each
    target: tuple[str, ...] = ("time=0.6",)
    out: Path | None = None  # folder for the runs and report.html [runs/shrink-DATE]
    # folder of a command to continue, with its own options; of those given here only --builder counts
    resume: Path | None = None

    def run(self) -> int:
        if self.resume is not None:
            saved = saved_options(self.resume, Shrink, OLD_OPTIONS)
            return dataclasses.replace(saved, out=self.resume, resume=None, builder=self.builder)._shrink(resume=True)
        return self._shrink(resume=False)

    def _shrink(self, resume: bool) -> int:
        from rich.console import Console

        from deepres.models import short_name
        from deepres.shrinking import Target, shrink
        from deepres.shrinking.page import shrink_page, shrink_table
        from deepres.training import Interrupted

        if self.model is None:
            raise DeepresError("which network? Give a run, a file, the name of a network or a reference such as timm:resnet26")
        if not self.target:
            raise DeepresError("give a --target, such as time=0.6")
        for target in self.target:
            Target.parse(target)
        first = first_of_several(self.out)
        out = self.out or default_out("shrink")
        if first:
            if not resume and (out / COMMAND).exists():
                raise DeepresError(
                    f"{out}: holds a shrink run already; continue it with --resume {out}, or choose another --out"
                )
            save_options(self, out)
        console = Console()
        done = []
        began = time.perf_counter()
        try:
            with resumable(f"deepres shrink --resume {out}", same=False):
                for target in self.target:
                    done.append(
                        shrink(
                            self.model,
                            self.data,
                            target,
                            resume=True,
                            log=say if first else lambda text: None,
                            out=out / target.replace("=", "-"),
                            **keywords(self, ShrinkOptions, OpenOptions, RunOptions),
                        )
                    )
        except Interrupted:
            raise
        except DeepresError:
            if first and not resume:
                discard_options(out)
            raise
        if not first:
            return 0
        console.print(table(shrink_table(done).head, shrink_table(done).rows))
        for one in done:
            say("")
            for line in one.summary():
                say(line)
        name = short_name(self.model)
        footer = f"Made by `deepres shrink {self.model} --data {self.data}` in {time.perf_counter() - began:.0f} s."
        say(f"\nReport: {shrink_page(done, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"Network: {out / self.target[-1].replace('=', '-')}")
        return 0
