"""One frozen dataclass of options per command. They import the rooms they call only when they run."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from deepres.errors import DeepresError

if TYPE_CHECKING:
    from rich.table import Table

    from deepres.train import Run


def default_out(name: str) -> Path:
    """``runs/NAME-DATE``; the date to the second keeps runs apart."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def first_of_several(out: Path | None) -> bool:
    """Whether this process speaks and writes, of those that ``torchrun`` started. They have to share a folder that is named."""
    if out is None and "RANK" in os.environ:
        raise DeepresError("under torchrun all processes need the same folder: give --out")
    return int(os.environ.get("RANK", "0")) == 0


def table(head: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table

    built = Table(*head, box=None, pad_edge=False)
    for column in built.columns[1:]:
        column.justify = "right"
    for row in rows:
        built.add_row(*row)
    return built


def say(text: str) -> None:
    """A line on standard output, as it is: not coloured, not wrapped."""
    from rich.console import Console

    Console().print(text, highlight=False, markup=False, soft_wrap=True)


COMMAND = "command.json"


def _save_options(command: Any, out: Path) -> None:
    """Note a command's options in its folder, to go on with it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / COMMAND).write_text(json.dumps(dataclasses.asdict(command), default=str, indent=1))


def _saved_options(out: Path, kind: type[Any]) -> Any:
    """The command that wrote a folder."""
    try:
        values = json.loads((out / COMMAND).read_text())
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except FileNotFoundError as error:
        raise DeepresError(f"{out}: holds no {COMMAND}, so there is nothing to go on with") from error
    except (ValueError, TypeError) as error:
        raise DeepresError(f"{out / COMMAND}: not what deepres {kind.__name__.lower()} wrote ({error})") from error


@contextlib.contextmanager
def resumable(command: str, *, same: bool = True) -> Iterator[None]:
    """When a run inside is interrupted, say how to go on with the whole."""
    from deepres.train import Interrupted

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        how = " with the same options" if same else ""
        raise Interrupted(f"interrupted, and what is done is kept; `{command}`{how} goes on") from error


@contextlib.contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on a terminal; gives what it is to be told: (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[IO[str]]:
    """The file to write to, or standard output."""
    if path is None:
        yield sys.stdout
        return
    try:
        with open(path, "w", newline="") as file:
            yield file
    except OSError as error:
        raise DeepresError(f"{path}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True)
class Degrade:
    """Show the degradation problem: deeper plain networks train worse, residual ones do not."""

    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    depths: tuple[int, ...] = (20, 56)  # layers: two or more depths of 6n+2
    epochs: float = 10
    seeds: int = 1  # how many times each network is trained
    out: Path | None = None  # where report.html and the runs go; a folder used before is continued [runs/degrade-DATE]
    speed: str = "float32-channels-last"  # how to compute; see `deepres train --help`
    size: int | None = None  # side of the input in pixels [the images' own, or 32]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.live import Board
        from deepres.paper.degrade import degrade, to_json
        from deepres.paper.degrade_page import HEAD, page, rows

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
        console.print(table(HEAD, rows(findings)))
        say("")
        for line in findings.words():
            say(line)
        command = f"deepres degrade --data {self.data} --depths {' '.join(map(str, self.depths))} --epochs {self.epochs:g}"
        report = page(findings, f"Made by `{command} --seeds {self.seeds}` in {findings.seconds:.0f} s.").write(
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
    recipe: str | None = (
        None  # paper-cifar, paper-imagenet, fast-cifar, modern-imagenet, finetune, transformer, digits [fast-cifar, for a text transformer]
    )
    out: Path | None = None  # folder for weights, checkpoints and logs [runs/NET-DATE]
    resume: Path | None = None  # continue the run in this folder; of the other options only --device and --workers count
    again: Path | None = None  # repeat the run saved in this run.json (or run's folder), into --out
    epochs: float | None = None  # instead of the recipe's
    batch: int | None = None  # examples per step over all processes, instead of the recipe's
    lr: float | None = None  # highest learning rate, instead of the recipe's
    exits: float | None = None  # weight in the loss of exits that `deepres ghost` can leave by; 0.5 is usual
    seed: int = 0
    width: float = 1.0  # multiplies the network's channels
    size: int | None = None  # side of the input in pixels [the images' own, or 224]
    init: str | None = None  # weights to start from: a run or a file; a head of another size is left out
    zero_init: bool = False  # start each block as the identity
    dropout: float = 0.0  # share of features left out in front of the classifier
    survival: float = 1.0  # stochastic depth: the share of steps in which the last branch is computed; 0.5 is usual
    shortcut: Literal["A", "B", "C", "none"] | None = None  # instead of the network's usual
    speed: str = (
        "auto"  # auto, exact, float32, float32-channels-last, bf16, bf16-channels-last, float32-compiled, bf16-compiled
    )
    memory: str = "auto"  # auto, all (recompute nothing), or the most to use, such as 3GiB
    sync_norm: bool = False  # batch norm over the examples of all processes
    device: str = "auto"  # auto, cpu, cuda
    workers: int | None = None  # processes that decode large images
    keep: int = 2  # checkpoints to keep
    checkpoint_minutes: float = 5.0  # between checkpoints inside an epoch
    watch_test: bool = False  # show the test error after each epoch; nothing is chosen by it
    lens: str | None = None  # also glance at every site, every=1epoch or every=200steps; kept with the run for `deepres look`

    def run(self) -> int:
        from deepres.train import train

        run = self._run()
        tap = None
        if self.lens is not None:
            from deepres.lens import Monitor

            tap = Monitor(self.lens, run.out, say=lambda text: print(text, file=sys.stderr))
        result = train(run, resume=self.resume is not None, tap=tap)
        if int(os.environ.get("RANK", "0")) == 0:
            say(
                f"\n{run.net}: test error {result.test.top1:.2f} % (top-5 {result.test.top5:.2f} %) on {result.test.n:,} examples, "
                f"with the weights of epoch {result.best_epoch} (best on the validation split, {result.val_error:.2f} %), "
                f"{result.seconds:.0f} s\n{result.out}"
            )
        return 0

    def _run(self) -> Run:
        from deepres.data.text import is_text
        from deepres.train import Run

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
class Evaluate:
    """Test a trained network, or several as an ensemble: errors, by class, confusion, calibration."""

    models: Positional[tuple[Path, ...]]  # runs' folders or weights files
    data: str = "digits"
    split: Literal["test", "val", "train"] = "test"
    protocol: Literal["one-crop", "ten-crop", "multiscale"] = "one-crop"  # the papers' ways to test
    scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # of multiscale: short sides of the whole images, pixels
    batch: int = 250
    device: str = "cpu"
    json: bool = False  # print everything as JSON
    out: Path | None = None  # write the JSON into this folder too

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.evaluate import evaluate
        from deepres.train.distribute import pick_device

        if not self.models:
            raise DeepresError("which network? Give a run's folder or a weights file")
        with counted("testing") as watch:
            result = evaluate(
                self.models,
                self.data,
                split=self.split,
                protocol=self.protocol,
                scales=self.scales,
                batch=self.batch,
                device=pick_device(self.device),
                watch=watch,
            )
        text = js.dumps(result.to_dict(), indent=1)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "evaluation.json").write_text(text)
        if self.json:
            print(text)
            return 0
        console = Console()
        say(
            f"{self.split}: {result.n:,} examples, top-1 error {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
            f"loss {result.loss:.4f}, calibration error {result.calibration:.2f} %"
            + (f", {result.unreadable} images could not be read" if result.unreadable else "")
        )
        names = list(result.per_class)
        worst = sorted(names, key=lambda name: -result.per_class[name])[:20]
        rows = []
        for name in worst:
            row = dict(zip(names, result.confusion[names.index(name)], strict=False))
            others = sorted(((n, c) for n, c in row.items() if n != name and c), key=lambda pair: -pair[1])[:3]
            shown = name if name.isprintable() and name.strip() else repr(name)
            rows.append([shown, f"{result.per_class[name]:.2f} %", ", ".join(f"{n} {c}" for n, c in others)])
        console.print(table(["class", "error", "taken for"], rows))
        return 0


@dataclass(frozen=True)
class Pack:
    """Pack a folder of images into tar shards. Exit code 1 if some images could not be read; they are named and left out."""

    folder: Positional[Path]  # CLASS/x.jpg or SPLIT/CLASS/x.jpg
    out: Path | None = None  # folder for the shards [runs/pack-DATE]
    shard: str = "512MiB"  # size of a shard
    verify: bool = True  # decode each image first

    def run(self) -> int:
        from deepres.data import pack
        from deepres.train.run import parse_bytes

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
class Predict:
    """Classify images with a trained network. Exit code 1 if some could not be read."""

    model: Positional[Path]  # a run's folder or a weights file
    images: Positional[tuple[Path, ...]]  # image files or folders of them
    top: int = 5  # how many classes to name
    format: Literal["text", "csv", "json"] = "text"
    out: Path | None = None  # write to this file instead of the terminal
    batch: int = 32

    def run(self) -> int:
        from deepres.evaluate import predict

        answers = predict(self.model, self.images, top=self.top, batch=self.batch)
        bad = 0
        with output(self.out) as file:
            if self.format == "csv":
                writer = csv.writer(file)
                writer.writerow(["file", "rank", "class", "probability"])
            everything = []
            for answer in answers:
                if answer.error:
                    bad += 1
                    print(f"deepres: skipped {answer.error}", file=sys.stderr)
                    continue
                ranked = list(zip(answer.names, answer.probabilities, strict=True))
                if self.format == "csv":
                    writer.writerows([answer.file, i, name, f"{p:.6f}"] for i, (name, p) in enumerate(ranked, 1))
                elif self.format == "json":
                    everything.append({"file": answer.file, "classes": [{"name": n, "probability": p} for n, p in ranked]})
                else:
                    file.write(f"{answer.file}: " + ", ".join(f"{name} {p:.1%}" for name, p in ranked) + "\n")
            if self.format == "json":
                json.dump(everything, file, indent=1)
                file.write("\n")
        if bad:
            print(
                f"deepres: {bad} image{'s' if bad > 1 else ''} could not be read and {'were' if bad > 1 else 'was'} skipped",
                file=sys.stderr,
            )
        return 1 if bad else 0


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
    weights: Path | None = None  # a state_dict for a network that is built by name
    size: int | None = None  # side of the input in pixels [what the network was trained with]
    device: str = "auto"
    out: Path | None = None  # folder for the ghost, report.html and ghost.json [runs/ghost-DATE]

    def run(self) -> int:
        from rich.console import Console

        from deepres.ghost import ghost, save_ghost
        from deepres.ghost.page import HEAD, page, rows
        from deepres.train.distribute import pick_device

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
                weights=self.weights,
                size=self.size,
                device=pick_device(self.device),
                watch=watch,
                say=say,
            )
        save_ghost(made, out)
        Console().print(table(HEAD, rows(made)))
        say("")
        for line in made.words():
            say(line)
        asked = f"--budget {self.budget:g}" if self.budget is not None else f"--error {self.error:g}"
        footer = f"Made by `deepres ghost {self.model} --data {self.data} {asked}` in {time.perf_counter() - began:.0f} s."
        name = Path(self.model).name if Path(self.model).exists() else self.model
        say(f"\nThe whole: {page(made, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"The ghost: {out}")
        return 0


@dataclass(frozen=True)
class Serve:
    """Answer images over HTTP with a trained network or a ghost, until stopped."""

    model: Positional[str]  # a run, a file, a ghost's folder, or a reference such as torchvision.models:resnet50
    host: str = "127.0.0.1"
    port: int = 8000
    batch: int = 32  # images that are answered in one call, at most
    wait: float = 2.0  # milliseconds to wait for more images before a call
    queue: int = 256  # images that may wait; more are refused with 503
    timeout: float = 30.0  # seconds after which an image that still waits is given up with 504
    body: float = 8.0  # the largest request, MB
    pixels: float = 50.0  # the largest image, millions of pixels
    tighten: bool = False  # under load, a ghost leaves earlier before images queue up
    weights: Path | None = None  # a state_dict for a network that is built by name
    device: str = "auto"

    def run(self) -> int:
        from deepres.serve import Limits, serve

        limits = Limits(
            batch=self.batch,
            wait=self.wait / 1000,
            queue=self.queue,
            timeout=self.timeout,
            body=int(self.body * 1e6),
            pixels=int(self.pixels * 1e6),
        )
        return serve(
            self.model,
            host=self.host,
            port=self.port,
            limits=limits,
            tighten=self.tighten,
            weights=self.weights,
            device=self.device,
        )


@dataclass(frozen=True)
class Info:
    """Describe a network: stages, blocks, parameters, multiply-adds, memory."""

    net: Positional[str]  # a name from `deepres nets`, a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    size: int | None = None  # side of the input in pixels [32 for CIFAR networks, else 224]
    batch: int = 128  # for the memory of a training step
    width: float = 1.0
    num_classes: int | None = None
    in_channels: int | None = None
    stride_in: Literal["1x1", "3x3"] | None = None  # of a bottleneck: 1x1 is the paper's

    def run(self) -> int:
        from rich.console import Console

        from deepres import nn
        from deepres.sites import sites

        asked = {"num_classes": self.num_classes, "in_channels": self.in_channels, "stride_in": self.stride_in}
        options = {key: value for key, value in asked.items() if value is not None}
        if ":" in self.net or Path(self.net).exists():
            model, _ = nn.open_model(self.net, classes=self.num_classes, channels=self.in_channels)
        else:
            model = nn.create(self.net, width=self.width, **options)
        config = model.config if isinstance(model, nn.ResNet) else None
        size = (
            self.size if self.size is not None else nn.input_size(model) or (32 if config and config.stem == "cifar" else 224)
        )
        if size < 1:
            raise DeepresError(f"size is the side of the input in pixels and at least 1, not {size}")
        cost = nn.cost(model, (nn.input_channels(model) or 3, size, size))
        console = Console()
        if config is not None:
            kind = "plain" if config.is_plain else f"residual, shortcut option {config.shortcut}"
            order = "pre-activation" if config.preact else "post-activation"
            stride = f", stride in the {config.stride_in}" if config.branch == "bottleneck" else ""
            say(f"{self.net}: {config.depth} layers, {kind}, {config.branch} blocks{stride}, {order}")
            rows = [
                [str(i), str(config.blocks[i]), str(config.channels[i]), f"{nn.parameters(stage):,}"]
                for i, stage in enumerate(model.stages.children())  # type: ignore[union-attr]
            ]
            console.print(table(["stage", "blocks", "channels", "parameters"], rows))
        else:
            found = sites(model)
            fixed = sum(site.reshapes for site in found)
            say(
                f"{self.net}: {type(model).__name__} with {len(found)} residual sites, {fixed} of them changing the signal's shape"
            )
        gib = cost.training_bytes(self.batch) / 2**30
        say(
            f"{cost.params:,} parameters ({cost.param_bytes / 2**20:.1f} MiB in float32)\n"
            f"{cost.macs / 1e9:.3f} G multiply-adds for an image of {size}x{size}\n"
            f"{gib:.2f} GiB for a training step of {self.batch} images in float32, all activations kept"
        )
        return 0


@dataclass(frozen=True)
class Nets:
    """List the networks that have a name; other depths of 6n+2 and 9n+2 work too."""

    pattern: Positional[str] = "*"  # such as "*cifar*"

    def run(self) -> int:
        from deepres.nn import names
        from deepres.nn.zoo import names as known

        found = names(self.pattern)
        if not found:
            raise DeepresError(f"no network's name matches {self.pattern!r}; `deepres nets` lists all {len(known())}")
        print("\n".join(found))
        return 0


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
    out: Path | None = (
        None  # folder for report.html, outcomes.json and the runs; one used before is continued [runs/paper-DATE]
    )

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.paper.experiments import EXPERIMENTS, experiment, served
        from deepres.paper.lab import Lab, scale
        from deepres.paper.page import HEAD, differs, page, rows, verdict
        from deepres.paper.plan import Planner, seconds_of

        console = Console()
        if self.name == "list":
            rows_ = [[one.name, one.title, one.source] for one in EXPERIMENTS.values()]
            console.print(table(["name", "claim", "where"], rows_))
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
                console.print(table(HEAD, rows(outcome)))
                say(f"{verdict(outcome)}\n{differs(outcome)}")
                out.mkdir(parents=True, exist_ok=True)
                (out / "outcomes.json").write_text(js.dumps([dataclasses.asdict(one) for one in outcomes], indent=1))
        if not first:
            return 0
        if planner.left_out:
            say(f"\nDid not fit the budget of {self.budget}: {', '.join(planner.left_out)}.")
        footer = f"Made by `deepres paper {self.name} --scale {self.scale}` in {sum(o.seconds for o in outcomes):.0f} s."
        say(f"\nThe whole: {page(outcomes, footer).write(out / 'report.html')}")
        return 1 if planner.left_out else 0


@contextlib.contextmanager
def shares(what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left, on a terminal; gives what it is to be told: (what is under way, share done of it)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=what)


@dataclass(frozen=True)
class Look:
    """Show what the depth of a network does: one interactive page for one network, or several side by side."""

    models: Positional[tuple[str, ...]]  # runs, files, names of ours, torchvision.models:NAME, timm:NAME, hf:FOLDER
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    split: Literal["train", "val", "test"] = "val"
    examples: int = 1000  # at most
    weights: Path | None = None  # a state_dict for a network that is built by name
    pairs: int = 60  # pairs of branches to leave out; 0: none, nor deletions and exchanges
    lesions: bool = True  # leave each branch out in turn, a pass over the examples each
    size: int | None = None  # side of the input in pixels [what the network was trained with]
    batch: int = 100
    device: str = "auto"  # auto, cpu, cuda
    out: Path | None = None  # folder for report.html and findings.json [runs/look-DATE]

    def run(self) -> int:
        import json as js

        from deepres.lens import look, words
        from deepres.lens.monitor import read_glances
        from deepres.lens.page import page
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
            for line in words(looks[-1]):
                say(f"  {line}")
        assert source is not None
        command = f"deepres look {' '.join(self.models)} --data {self.data}"
        built = page(
            looks,
            data=f"{source.data.name}, {looks[0].examples:,} examples of the {self.split} split",
            footer=f"Made by `{command}` in {time.perf_counter() - began:.0f} s.",
            classes=source.data.classes,
            pixels=None if source.data.is_text else source.pixels,
            glances=read_glances(self.models[0]),
        )
        report = built.write(out / "report.html")
        (out / "findings.json").write_text(js.dumps([found.to_dict() for found in looks], indent=1))
        say(f"\nThe whole: {report}")
        return 0


@dataclass(frozen=True)
class Shrink:
    """Give back the depth that a network does not need: press on residuals until blocks are identities, and take these out."""

    model: Positional[str | None] = (
        None  # a name (trained from scratch), a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    )
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    target: tuple[str, ...] = (
        "time=0.6",
    )  # what shall be left: time=, macs=, params=, blocks=, or error=+0.3; several: a frontier
    epochs: float | None = None  # of the whole run [10 for a trained network, else the recipe's]
    recipe: str | None = (
        None  # how to train [a cosine from 0.05, AdamW for layer norms, for a trained network, else fast-cifar]
    )
    weights: Path | None = None  # a state_dict for a network that is built by name
    learn: float | None = None  # share of the run before the first block is pressed on [0.02 for a trained network, else 0.35]
    press: float | None = (
        None  # share of the run by which the last block is the identity [0.5 for a trained network, else 0.65]
    )
    distil: float | None = None  # weight of the given network's own answers in the loss [0.5 for a trained network, else 0]
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    size: int | None = None  # side of the input in pixels
    speed: str = "auto"  # see `deepres train --help`; exact weighs blocks by multiply-adds instead of measured time
    memory: str = "auto"
    device: str = "auto"
    workers: int | None = None
    out: Path | None = None  # folder for the runs and report.html [runs/shrink-DATE]
    resume: Path | None = None  # go on with the command that wrote this folder

    def run(self) -> int:
        if self.resume is not None:
            saved = _saved_options(self.resume, Shrink)
            return dataclasses.replace(saved, out=self.resume, resume=None)._shrink(resume=True)
        return self._shrink(resume=False)

    def _shrink(self, resume: bool) -> int:
        from rich.console import Console

        from deepres.shrink import Target, shrink
        from deepres.shrink.page import HEAD, page, rows

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
            _save_options(self, out)
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
        console.print(table(HEAD, rows(done)))
        for one in done:
            say("")
            for line in one.words():
                say(line)
        name = Path(self.model).name if Path(self.model).exists() else self.model
        footer = f"Made by `deepres shrink {self.model} --data {self.data}` in {time.perf_counter() - began:.0f} s."
        say(f"\nThe whole: {page(done, name=name, data=Path(self.data).name, footer=footer).write(out / 'report.html')}")
        say(f"The network: {out / self.target[-1].replace('=', '-')}")
        return 0


@dataclass(frozen=True)
class Optimize:
    """Measure how fast a trained network runs as it is and after `deepres.optimize`, on this machine."""

    model: Positional[str]  # a name, a run's folder or a weights file
    size: int | None = None  # side of the input in pixels [32 for CIFAR networks, else 224]
    batch: int = 32

    def run(self) -> int:
        import torch

        from deepres import nn
        from deepres.kernels import optimize, throughput

        model, _ = nn.open_model(self.model)
        small = isinstance(model, nn.ResNet) and model.config.stem == "cifar"
        size = self.size or nn.input_size(model) or (32 if small else 224)
        images = torch.rand(self.batch, nn.input_channels(model) or 3, size, size)
        before = throughput(model, images)
        fast = optimize(model, images)
        after = throughput(fast, images)
        print(f"as it is {before:,.1f} images/s, optimized {after:,.1f} images/s: {after / before:.2f} x, batch {self.batch}")
        return 0
