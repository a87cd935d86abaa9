"""``deepres train``."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepres.callback import Callback
from deepres.cli.common import default_out, say
from deepres.errors import DeepresError

if TYPE_CHECKING:
    from deepres.training import Run


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
