"""The commands that use a network as it is. One frozen dataclass of options each; rooms are imported when a command runs."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepres.cli.common import counted, output, say, table
from deepres.errors import DeepresError


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
class Info:
    """Describe a network: stages, blocks, parameters, multiply-adds, memory."""

    net: Positional[str]  # a name from `deepres nets`, a run, a file, torchvision.models:NAME, timm:NAME, hf:FOLDER
    size: int | None = None  # side of the input in pixels [32 for CIFAR networks, else 224]
    batch: int = 128  # for the memory of a training step
    width: float = 1.0  # multiplies the network's channels
    num_classes: int | None = None  # instead of the network's usual
    in_channels: int | None = None  # instead of the network's usual
    stride_in: Literal["1x1", "3x3"] | None = None  # of a bottleneck: 1x1 is the paper's

    def run(self) -> int:
        from rich.console import Console

        from deepres import models, nn
        from deepres.adapters import sites

        asked = {"num_classes": self.num_classes, "in_channels": self.in_channels, "stride_in": self.stride_in}
        options = {key: value for key, value in asked.items() if value is not None}
        if ":" in self.net or Path(self.net).exists():
            model, _ = models.open_model(self.net, classes=self.num_classes, channels=self.in_channels)
        else:
            model = nn.create(self.net, width=self.width, **options)
        config = model.config if isinstance(model, nn.ResNet) else None
        size = (
            self.size
            if self.size is not None
            else models.input_size(model) or (32 if config and config.stem == "cifar" else 224)
        )
        if size < 1:
            raise DeepresError(f"size is the side of the input in pixels and at least 1, not {size}")
        cost = nn.cost(model, (models.input_channels(model) or 3, size, size))
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
class Evaluate:
    """Test a trained network, or several as an ensemble: errors, by class, confusion, calibration."""

    models: Positional[tuple[Path, ...]]  # runs' folders or weights files
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    split: Literal["test", "val", "train"] = "test"  # which part of the data is measured
    protocol: Literal["one-crop", "ten-crop", "multiscale"] = "one-crop"  # the papers' ways to test
    scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # of multiscale: short sides of the whole images, pixels
    batch: int = 250  # images of a pass
    device: str = "cpu"  # cpu, cuda
    json: bool = False  # print everything as JSON
    out: Path | None = None  # write the JSON into this folder too

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.evaluation import evaluate
        from deepres.training.distribute import pick_device

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
class Predict:
    """Classify images with a trained network. Exit code 1 if some could not be read."""

    model: Positional[Path]  # a run's folder or a weights file
    images: Positional[tuple[Path, ...]]  # image files or folders of them
    top: int = 5  # how many classes to name
    format: Literal["text", "csv", "json"] = "text"  # what is printed
    out: Path | None = None  # write to this file instead of the terminal
    batch: int = 32  # images of a pass

    def run(self) -> int:
        from deepres.evaluation import predict

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
class Optimize:
    """Measure how fast a trained network runs as it is and after `deepres.optimize`, on this machine."""

    model: Positional[str]  # a name, a run's folder or a weights file
    size: int | None = None  # side of the input in pixels [32 for CIFAR networks, else 224]
    batch: int = 32  # images of a pass that is timed

    def run(self) -> int:
        import torch

        from deepres import models, nn
        from deepres.engines import optimize, throughput

        model, _ = models.open_model(self.model)
        small = isinstance(model, nn.ResNet) and model.config.stem == "cifar"
        size = self.size or models.input_size(model) or (32 if small else 224)
        images = torch.rand(self.batch, models.input_channels(model) or 3, size, size)
        before = throughput(model, images)
        fast = optimize(model, images)
        after = throughput(fast, images)
        print(f"as it is {before:,.1f} images/s, optimized {after:,.1f} images/s: {after / before:.2f} x, batch {self.batch}")
        return 0


@dataclass(frozen=True)
class Serve:
    """Answer images over HTTP with a trained network or a ghost, until stopped."""

    model: Positional[str]  # a run, a file, a ghost's folder, or a reference such as torchvision.models:resnet50
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 for all of the machine's
    port: int = 8000  # port to listen at; 0 for a free one
    batch: int = 32  # images that are answered in one call, at most
    wait: float = 2.0  # milliseconds to wait for more images before a call
    queue: int = 256  # images that may wait; more are refused with 503
    timeout: float = 30.0  # seconds from a request's first byte to its answer; 408 while it is received, then 504
    call_timeout: float = 30.0  # seconds that one call of the network may take; then its process is killed and restarted
    body: float = 8.0  # the largest request, MB
    pixels: float = 50.0  # the largest image, millions of pixels
    tighten: bool = False  # under load, a ghost leaves earlier before images queue up
    weights: Path | None = None  # a state_dict for a network that is built by name
    device: str = "auto"  # auto, cpu, cuda

    def run(self) -> int:
        from deepres.serve import Limits, serve

        limits = Limits(
            batch=self.batch,
            wait=self.wait / 1000,
            queue=self.queue,
            timeout=self.timeout,
            call_timeout=self.call_timeout,
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
