"""``deepres shrink``."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deepres.cli.common import (
    COMMAND,
    default_out,
    first_of_several,
    resumable,
    save_options,
    saved_options,
    say,
    table,
)
from deepres.errors import DeepresError


@dataclass(frozen=True)
class Shrink:
    """Give back the depth that a network does not need: press on residuals until blocks are identities, and take these out."""

    # a name (trained from scratch), a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    model: Positional[str | None] = None
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    # what shall be left: time=, macs=, params=, blocks=, or error=+0.3; several: a frontier
    target: tuple[str, ...] = ("time=0.6",)
    epochs: float | None = None  # of the whole run [10 for a trained network, else the recipe's]
    # how to train [a cosine from half of the rate it was trained at, and from 0.05 at least, for a trained network, else fast-cifar]
    recipe: str | None = None
    weights: Path | None = None  # a state_dict for a network that is built by name
    learn: float | None = None  # share of the run before the first block is pressed on [0.02 for a trained network, else 0.1]
    # share of the run by which the last block is the identity [0.2 for a trained network, else 0.3]
    press: float | None = None
    distil: float | None = None  # weight of the given network's own answers in the loss [0.5 for a trained network, else 0]
    batch: int | None = None  # examples per step over all processes, instead of the recipe's
    lr: float | None = None  # highest learning rate, instead of the recipe's
    seed: int = 0  # of the order of the examples and of what is drawn; of the weights, from scratch
    size: int | None = None  # side of the input in pixels
    speed: str = "auto"  # see `deepres train --help`; exact weighs blocks by multiply-adds instead of measured time
    memory: str = "auto"  # auto, all (recompute nothing), or the most to use, such as 3GiB
    device: str = "auto"  # auto, cpu, cuda
    workers: int | None = None  # processes that decode large images
    out: Path | None = None  # folder for the runs and report.html [runs/shrink-DATE]
    resume: Path | None = None  # go on with the command that wrote this folder

    def run(self) -> int:
        if self.resume is not None:
            saved = saved_options(self.resume, Shrink)
            return dataclasses.replace(saved, out=self.resume, resume=None)._shrink(resume=True)
        return self._shrink(resume=False)

    def _shrink(self, resume: bool) -> int:
        from rich.console import Console

        from deepres.models import short_name
        from deepres.shrinking import Target, shrink
        from deepres.shrinking.page import shrink_page, shrink_table

        if self.model is None:
            raise DeepresError("which network? Name a run, a file, a network of ours or a reference such as timm:resnet26")
        if not self.target:
            raise DeepresError("what shall be left? Give --target, such as time=0.6")
        for target in self.target:
            Target.parse(target)
        first = first_of_several(self.out)
        out = self.out or default_out("shrink")
        if first:
            if not resume and (out / COMMAND).exists():
                raise DeepresError(f"{out}: holds a shrinking already; go on with --resume {out}, or choose another --out")
            save_options(self, out)
        console = Console()
        done = []
        began = time.perf_counter()
        with resumable(f"deepres shrink --resume {out}", same=False):
            for target in self.target:
                done.append(
                    shrink(
                        self.model,
                        self.data,
                        target,
                        epochs=self.epochs,
                        recipe=self.recipe,
                        out=out / target.replace("=", "-"),
                        learn=self.learn,
                        constrain=self.press,
                        distil=self.distil,
                        weights=self.weights,
                        resume=True,
                        log=say,
                        batch=self.batch,
                        lr=self.lr,
                        seed=self.seed,
                        size=self.size,
                        speed=self.speed,
                        memory=self.memory,
                        device=self.device,
                        workers=self.workers,
                    )
                )
        if not first:
            return 0
        console.print(table(shrink_table(done).head, shrink_table(done).rows))
        for one in done:
            say("")
            for line in one.summary():
                say(line)
        name = short_name(self.model)
        footer = f"Made by `deepres shrink {self.model} --data {self.data}` in {time.perf_counter() - began:.0f} s."
        say(f"\nThe whole: {shrink_page(done, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"The network: {out / self.target[-1].replace('=', '-')}")
        return 0
