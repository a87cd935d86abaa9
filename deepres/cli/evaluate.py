"""``deepres evaluate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepres.cli.common import DataOption, check_out, counted, keywords, say, table
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.evaluation.options import EvaluateOptions
from deepres.models.options import OpenOptions
from deepres.options import DeviceOption


@dataclass(frozen=True, kw_only=True)
class Evaluate(DeviceOption, BuilderOption, OpenOptions, EvaluateOptions, DataOption):
    """Test a trained network, or several as an ensemble: errors, by class, confusion, calibration."""

    # one, or the members of an ensemble: runs, files, ghosts, torchvision.models:NAME, timm:NAME, hf:FOLDER
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL ...")] = ()
    json: bool = False  # print everything as JSON
    out: Path | None = None  # folder in which evaluation.json is written too [nothing is written]

    def run(self) -> int:
        import json as js

        from rich.console import Console

        from deepres.evaluation import evaluate
        from deepres.ghosting import ghost_or_reference
        from deepres.report.page import finite
        from deepres.training.distribute import pick_device

        if not self.models:
            raise DeepresError("which network? Give a run's folder or a weights file")
        if self.scales != EvaluateOptions.scales and self.protocol != "multiscale":
            raise DeepresError("--scales are the sizes of --protocol multiscale; give it too, or leave them out")
        check_out(self.out)
        with counted("testing") as watch:
            result = evaluate(
                [ghost_or_reference(model) for model in self.models],
                self.data,
                device=pick_device(self.device),
                watch=watch,
                say=lambda text: print(f"deepres: {text}", file=sys.stderr),
                **keywords(self, EvaluateOptions, OpenOptions),
            )
        text = js.dumps(finite(result.to_dict()), indent=1)
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
