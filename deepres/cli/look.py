"""``deepres look``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from deepres.cli.common import DataOption, check_out, default_out, keywords, say, shares
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.lens.options import LookOptions
from deepres.models.options import OpenOptions
from deepres.options import DeviceOption


@dataclass(frozen=True, kw_only=True)
class Look(DeviceOption, BuilderOption, OpenOptions, LookOptions, DataOption):
    """Show what the depth of a network does: one interactive page for one network, or several side by side."""

    # one or more: runs, files, names of ours, torchvision.models:NAME, timm:NAME, hf:FOLDER
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL ...")] = ()
    split: Literal["train", "val", "test"] = "val"  # part of the data that is looked at
    examples: int = 1000  # number of examples, at most
    batch: int = 100  # images of a pass
    out: Path | None = None  # folder for report.html and findings.json [runs/look-DATE]

    def run(self) -> int:
        import json as js

        from deepres.data import Tokens
        from deepres.lens import LookResult, look
        from deepres.lens import summary as summary
        from deepres.lens.examples import Examples
        from deepres.lens.layer_predictions import logit_lens
        from deepres.lens.monitor import read_snapshots
        from deepres.lens.page import look_page
        from deepres.models import need_layers, open_with_data
        from deepres.report.page import finite
        from deepres.training.distribute import pick_device

        if not self.models:
            raise DeepresError("which network? Name a run, a file, or a reference such as torchvision.models:resnet50")
        if self.examples < 2 or self.batch < 1 or self.pairs < 0:
            raise DeepresError("--examples is at least 2, --batch at least 1, and --pairs at least 0")
        out = self.out or default_out("look")
        check_out(out)
        looks: list[LookResult] = []
        logits, classes, examples = [], [], None
        began = time.perf_counter()
        for reference in self.models:
            paired = open_with_data(reference, self.data, weights=self.weights, size=self.size)
            need_layers(paired.model, paired.opened.name)
            part = getattr(paired.data, self.split)
            examples = Examples(paired.data, part, self.examples, pick_device(self.device), labelled=paired.fits)
            classes.append(examples.data.classes)
            # files of one name in two folders are told apart by their paths
            name = reference if any(found.name == paired.opened.name for found in looks) else paired.opened.name
            with shares(name) as watch:
                looks.append(
                    look(
                        paired.model,
                        examples.batches(self.batch),
                        name=name,
                        device=examples.device,
                        progress=watch,
                        **keywords(self, LookOptions),
                    )
                )
            if isinstance(paired.data.prepare, Tokens) and paired.data.prepare.vocabulary is not None:
                text = part.pixels[examples.chosen[:1]].long().to(examples.device)
                logits.append(logit_lens(paired.model, text, paired.data.prepare.vocabulary))
            say(name)
            for remark in paired.remarks:
                say(f"  {remark}")
            for line in summary(looks[-1]):
                say(f"  {line}")
        assert examples is not None
        command = f"deepres look {' '.join(self.models)} --data {self.data}"
        built = look_page(
            looks,
            data=f"{examples.data.name}, {looks[0].examples:,} examples of the {self.split} split",
            footer=f"Made by `{command}` in {time.perf_counter() - began:.0f} s.",
            classes=classes,
            pixels=None if examples.data.is_text else examples.pixels,
            snapshots=read_snapshots(self.models[0]),
            logits=logits,
        )
        report = built.write(out / "report.html")
        (out / "findings.json").write_text(js.dumps(finite([found.to_dict() for found in looks]), indent=1))
        say(f"\nThe whole: {report}")
        return 0
