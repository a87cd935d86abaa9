"""The commands that train, and what they train on. One frozen dataclass of options each; rooms are imported when a command runs."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from deepres.callback import Callback
from deepres.cli.common import counted, default_out, first_of_several, resumable, say, table
from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.training import Run


@dataclass(frozen=True)
class Pack:
    """Pack a folder of images into tar shards. Exit code 1 if some images could not be read; they are named and left out."""

    folder: Positional[Path]  # CLASS/x.jpg or SPLIT/CLASS/x.jpg
    out: Path | None = None  # folder for the shards [runs/pack-DATE]
    shard: str = "512MiB"  # size of a shard
    verify: bool = True  # decode each image first

    def run(self) -> int:
        from deepres.data import pack
        from deepres.training.run import parse_bytes

        if not self.folder.is_dir():
            raise DeepresError(f"{self.folder}: no such folder")
        with counted("packing") as watch:
            packed = pack(
                self.folder,
                self.out or default_out("pack"),
                shard_bytes=parse_bytes(self.shard),
                verify=self.verify,
                watch=watch,
            )
        for name in packed.unreadable:
            print(f"left out, cannot be read: {name}", file=sys.stderr)
        say(
            f"{packed.images} images in {len(packed.shards)} shards in {packed.shards[0].parent}"
            + (f", {len(packed.unreadable)} left out" if packed.unreadable else "")
        )
        return 1 if packed.unreadable else 0


@dataclass(frozen=True)
class Degrade:
    """Show the degradation problem: deeper plain networks train worse, residual ones do not."""

    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    depths: tuple[int, ...] = (20, 56)  # layers: two or more depths of 6n+2
    epochs: float = 10  # of each network
    seeds: int = 1  # how many times each network is trained
    out: Path | None = None  # where report.html and the runs go; a folder used before is continued [runs/degrade-DATE]
    speed: str = "float32-channels-last"  # how to compute; see `deepres train --help`
    size: int | None = None  # side of the input in pixels [the images' own, or 32]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.live import Board
        from deepres.paper.degrade import degrade, to_json
        from deepres.paper.degrade_page import degradation_page, degradation_table

        out = self.out or default_out("degrade")
        console = Console()
        board = Board(console, self.depths, self.seeds, self.epochs)
        with board, resumable(f"deepres degrade --out {out}"):
            findings = degrade(
                self.data,
                depths=self.depths,
                epochs=self.epochs,
                seeds=self.seeds,
                out=out,
                speed=self.speed,
                size=self.size,
                watch=board.update,
            )
        console.print(table(degradation_table(findings).head, degradation_table(findings).rows))
        say("")
        for line in findings.summary():
            say(line)
        command = f"deepres degrade --data {self.data} --depths {' '.join(map(str, self.depths))} --epochs {self.epochs:g}"
        report = degradation_page(findings, f"Made by `{command} --seeds {self.seeds}` in {findings.seconds:.0f} s.").write(
            out / "report.html"
        )
        (out / "findings.json").write_text(to_json(findings))
        say(f"\nCurves and gradients: {report}")
        return 0


@dataclass(frozen=True)
class Train:
    """Train a network. Under torchrun, over several processes: torchrun --nproc-per-node 2 -m deepres train ..."""

    net: str | None = None  # a name from `deepres nets`, such as resnet20-cifar
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    # paper-cifar, paper-imagenet, fast-cifar, modern-imagenet, finetune, transformer, digits [fast-cifar; for a text transformer]
    recipe: str | None = None
    out: Path | None = None  # folder for weights, checkpoints and logs [runs/NET-DATE]
    resume: Path | None = None  # continue the run in this folder; of the other options only --device and --workers count
    again: Path | None = None  # repeat the run saved in this run.json (or run's folder), into --out
    epochs: float | None = None  # instead of the recipe's
    batch: int | None = None  # examples per step over all processes, instead of the recipe's
    lr: float | None = None  # highest learning rate, instead of the recipe's
    exits: float | None = None  # weight in the loss of exits that `deepres ghost` can leave by; 0.5 is usual
    seed: int = 0  # of the weights, the order of the examples and what is drawn
    width: float = 1.0  # multiplies the network's channels
    size: int | None = None  # side of the input in pixels [the images' own, or 224]
    init: str | None = None  # weights to start from: a run or a file; a head of another size is left out
    zero_init: bool = False  # start each block as the identity
    dropout: float = 0.0  # share of features left out in front of the classifier
    survival: float = 1.0  # stochastic depth: the share of steps in which the last branch is computed; 0.5 is usual
    shortcut: Literal["A", "B", "C", "none"] | None = None  # instead of the network's usual
    # auto, exact, float32, float32-channels-last, bf16, bf16-channels-last, float32-compiled, bf16-compiled
    speed: str = "auto"
    memory: str = "auto"  # auto, all (recompute nothing), or the most to use, such as 3GiB
    sync_norm: bool = False  # batch norm over the examples of all processes
    device: str = "auto"  # auto, cpu, cuda
    workers: int | None = None  # processes that decode large images
    keep: int = 2  # checkpoints to keep
    checkpoint_minutes: float = 5.0  # between checkpoints inside an epoch
    watch_test: bool = False  # show the test error after each epoch; nothing is chosen by it
    lens: str | None = None  # also glance at every site, every=1epoch or every=200steps; kept with the run for `deepres look`

    def run(self) -> int:
        from deepres.training import train

        run = self._run()
        callbacks: list[Callback] = []
        if self.lens is not None:
            from deepres.lens import Monitor

            callbacks.append(Monitor(self.lens, run.out, say=lambda text: print(text, file=sys.stderr)))
        result = train(run, resume=self.resume is not None, callbacks=callbacks)
        if int(os.environ.get("RANK", "0")) == 0:
            say(
                f"\n{run.net}: test error {result.test.top1:.2f} % (top-5 {result.test.top5:.2f} %) on {result.test.n:,} examples, "
                f"with the weights of epoch {result.best_epoch} (best on the validation split, {result.val_error:.2f} %), "
                f"{result.seconds:.0f} s\n{result.out}"
            )
        return 0

    def _run(self) -> Run:
        from deepres.data.text import is_text
        from deepres.training import Run

        here: dict[str, Any] = {"device": self.device, "workers": self.workers}
        if self.resume is not None:
            return dataclasses.replace(Run.read(self.resume), out=str(self.resume), **here)
        if self.again is not None:
            saved = Run.read(self.again)
            return dataclasses.replace(saved, out=str(self.out or default_out(saved.net)), **here)
        if self.net is None:
            raise DeepresError("which network? Give --net, such as --net resnet20-cifar (`deepres nets` lists them)")
        fields = {field.name for field in dataclasses.fields(Run)} & {field.name for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in fields}
        values["recipe"] = self.recipe or ("transformer" if is_text(Path(self.data)) else "fast-cifar")
        asked = {"zero_init": self.zero_init, "dropout": self.dropout, "survival": self.survival}
        usual = {"zero_init": False, "dropout": 0.0, "survival": 1.0}
        options: dict[str, Any] = {key: value for key, value in asked.items() if value != usual[key]}
        if self.shortcut:
            options["shortcut"] = self.shortcut
        return Run(**{**values, "out": str(self.out or default_out(self.net)), "options": options})


@dataclass(frozen=True)
class Paper:
    """The paper's claims as runs: list them, run one, or all that fit a budget, beside the paper's figures."""

    name: Positional[str] = "list"  # an experiment, `all`, or `list`
    scale: str = "quick"  # quick (digits, minutes), or the paper's own schedules: cifar, imagenet (with --data FOLDER)
    data: str | None = None  # instead of the scale's
    epochs: float | None = None  # instead of the scale's
    seeds: int | None = None  # instead of the scale's
    budget: str | None = None  # such as 20m or 2h: of `all`, run the cheapest that fit
    speed: str = "float32-channels-last"  # how to compute; see `deepres train --help`
    # folder for report.html, outcomes.json and the runs; one used before is continued [runs/paper-DATE]
    out: Path | None = None

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.paper.experiments import EXPERIMENTS, experiment, served
        from deepres.paper.lab import Lab, scale
        from deepres.paper.page import claim_table, differs, paper_page, verdict
        from deepres.paper.plan import Planner, seconds_of

        console = Console()
        if self.name == "list":
            rows = [[one.name, one.title, one.source] for one in EXPERIMENTS.values()]
            console.print(table(["name", "claim", "where"], rows))
            return 0
        chosen_scale = scale(self.scale).changed(data=self.data, epochs=self.epochs, seeds=self.seeds)
        chosen = served(chosen_scale) if self.name == "all" else [experiment(self.name)]
        first = first_of_several(self.out)
        out = self.out or default_out("paper")
        planner = Planner(chosen, seconds_of(self.budget) if self.budget else None, Console(stderr=True))
        lab = Lab(chosen_scale, out, self.speed, planner.watch)
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
