"""The commands that look at a network's depth, and spend less of it. Rooms are imported when a command runs."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepres.cli.common import (
    COMMAND,
    default_out,
    first_of_several,
    resumable,
    save_options,
    saved_options,
    say,
    shares,
    table,
)
from deepres.errors import DeepresError


@dataclass(frozen=True)
class Look:
    """Show what the depth of a network does: one interactive page for one network, or several side by side."""

    models: Positional[tuple[str, ...]]  # runs, files, names of ours, torchvision.models:NAME, timm:NAME, hf:FOLDER
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    split: Literal["train", "val", "test"] = "val"  # which part of the data is looked at
    examples: int = 1000  # at most
    weights: Path | None = None  # a state_dict for a network that is built by name
    pairs: int = 60  # pairs of branches to leave out; 0: none, nor deletions and exchanges
    lesions: bool = True  # leave each branch out in turn, a pass over the examples each
    size: int | None = None  # side of the input in pixels [what the network was trained with]
    batch: int = 100  # images of a pass
    device: str = "auto"  # auto, cpu, cuda
    out: Path | None = None  # folder for report.html and findings.json [runs/look-DATE]

    def run(self) -> int:
        import json as js

        from deepres.lens import look
        from deepres.lens import summary as summary
        from deepres.lens.monitor import read_snapshots
        from deepres.lens.page import look_page
        from deepres.lens.source import Source

        if not self.models:
            raise DeepresError("which network? Name a run, a file, or a reference such as torchvision.models:resnet50")
        if self.examples < 2 or self.batch < 1 or self.pairs < 0:
            raise DeepresError("--examples is at least 2, --batch at least 1, and --pairs at least 0")
        out = self.out or default_out("look")
        looks, source = [], None
        began = time.perf_counter()
        for reference in self.models:
            source = Source.open(
                reference, self.data, weights=self.weights, size=self.size, split=self.split, device=self.device
            )
            with shares(source.name) as watch:
                looks.append(
                    look(
                        source.model,
                        source.batches(self.examples, self.batch),
                        name=source.name,
                        lesions=self.lesions,
                        pairs=self.pairs,
                        device=source.device,
                        watch=watch,
                    )
                )
            say(f"{source.name}")
            for line in summary(looks[-1]):
                say(f"  {line}")
        assert source is not None
        command = f"deepres look {' '.join(self.models)} --data {self.data}"
        built = look_page(
            looks,
            data=f"{source.data.name}, {looks[0].examples:,} examples of the {self.split} split",
            footer=f"Made by `{command}` in {time.perf_counter() - began:.0f} s.",
            classes=source.data.classes,
            pixels=None if source.data.is_text else source.pixels,
            snapshots=read_snapshots(self.models[0]),
        )
        report = built.write(out / "report.html")
        (out / "findings.json").write_text(js.dumps([found.to_dict() for found in looks], indent=1))
        say(f"\nThe whole: {report}")
        return 0


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

        from deepres.lens.source import short_name
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
                        press=self.press,
                        distil=self.distil,
                        weights=self.weights,
                        resume=True,
                        say=say,
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
        from deepres.lens.source import short_name
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
                watch=watch,
                say=say,
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
