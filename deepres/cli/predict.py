"""``deepres predict``."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from deepres.cli.common import keywords, output
from deepres.cli.parsing import BuilderOption
from deepres.evaluation.options import PredictOptions
from deepres.models.options import OpenOptions


@dataclass(frozen=True, kw_only=True)
class Predict(BuilderOption, OpenOptions, PredictOptions):
    """Classify images with a trained network. Exit code 1 if some could not be read."""

    model: Positional[str]  # a run, a file, a ghost, torchvision.models:NAME, timm:NAME, hf:FOLDER
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE ...")] = ()  # image files, or folders of them
    format: Literal["text", "csv", "json"] = "text"  # format of the output
    out: Path | None = None  # file to write to [the terminal]

    def run(self) -> int:
        from deepres.evaluation import predict
        from deepres.ghosting import ghost_or_reference

        answers = predict(ghost_or_reference(self.model), self.images, **keywords(self, PredictOptions, OpenOptions))
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
