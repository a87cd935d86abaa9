"""``deepres evaluate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deepres.cli.common import counted, say, table
from deepres.errors import DeepresError


@dataclass(frozen=True)
class Evaluate:
    """Test a trained network, or several as an ensemble: errors, by class, confusion, calibration."""

    models: Positional[tuple[str, ...]]  # runs' folders, weights files, torchvision.models:NAME, timm:NAME, hf:FOLDER
    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards
    split: Literal["test", "val", "train"] = "test"  # which part of the data is measured
    protocol: Literal["one-crop", "ten-crop", "multiscale"] = "one-crop"  # the papers' ways to test
    scales: tuple[int, ...] = (224, 256, 384, 480, 640)  # of multiscale: short sides of the whole images, pixels
    batch: int = 250  # images of a pass
    weights: Path | None = None  # a checkpoint for a network that is built by name
    size: int | None = None  # side of the input in pixels [what the network was trained with]
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
                weights=self.weights,
                size=self.size,
                device=pick_device(self.device),
                watch=watch,
                say=lambda text: print(f"deepres: {text}", file=sys.stderr),
            )
        text = js.dumps(result.to_dict(), indent=1)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "evaluation.json").write_text(text)
        if self.json:
            print(text)
            return 0
        console = Console()
        what, bits = (
            ("examples", "") if result.bits_per_byte is None else ("tokens", f", {result.bits_per_byte:.4f} bits per byte")
        )
        say(
            f"{self.split}: {result.n:,} {what}, top-1 error {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
            f"loss {result.loss:.4f}{bits}, calibration error {result.calibration:.2f} %"
            + (f", {result.unreadable} images could not be read" if result.unreadable else "")
        )
        names = list(result.per_class)
        worst = sorted(names, key=lambda name: -result.per_class[name])[:20]
        rows = []
        for name in worst:
            mistaken = result.confusion[result.classes.index(name)] if result.confusion else []
            row = dict(zip(result.classes, mistaken, strict=False))
            others = sorted(((n, c) for n, c in row.items() if n != name and c), key=lambda pair: -pair[1])[:3]
            shown = name if name.isprintable() and name.strip() else repr(name)
            rows.append([shown, f"{result.per_class[name]:.2f} %", ", ".join(f"{n} {c}" for n, c in others)])
        console.print(table(["class", "error", "taken for"], rows))
        return 0
