"""``deepres train``: the fields of ``Run`` as options."""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Suppress

from deepres.callback import Callback
from deepres.cli.common import default_out, say
from deepres.cli.parsing import BuilderOption
from deepres.errors import DeepresError
from deepres.models.options import NetOptions
from deepres.training.run import Run

if TYPE_CHECKING:
    from deepres.data import Data


@dataclass(frozen=True)
class Train(BuilderOption, NetOptions, Run):
    """Train a network. Under torchrun, over several processes: torchrun --nproc-per-node 2 -m deepres train ..."""

    # A field of ``Run`` is given anew only where the command line may leave it open.

    # a name from `deepres nets`, such as resnet20-cifar, or a reference such as timm:resnet26; needed without --resume or --again
    net: str | None = None
    # paper-cifar, paper-imagenet, fast-cifar, muon-cifar, modern-imagenet, finetune, transformer, language, language-muon, digits
    # [transformer for layer norms, else fast-cifar]
    recipe: str | None = None
    out: str | None = None  # folder for weights, checkpoints and logs [runs/NET-DATE]
    options: Suppress[dict[str, Any]] = dataclasses.field(default_factory=dict)
    resume: Path | None = None  # folder of a run to continue; of the other options only --device, --workers and --builder count
    # folder of a run, or its run.json, to repeat from the beginning, into --out; besides it --device, --workers, --builder and --lens count
    again: Path | None = None
    # time, such as 15m or 2h: chooses the network, recipe and epochs with the least expected error that end within it on this machine, from
    # the table of measured trainings; --net and --recipe restrict the choice [no limit]
    budget: str | None = None
    lens: str | None = None  # how often to measure every site, every=1epoch or every=200steps; `deepres look` shows it [never]

    def __post_init__(self) -> None:
        """Nothing is checked here: the command line may name a run instead of giving one. ``_run`` checks what comes of it."""

    def run(self) -> int:
        from deepres.training import train
        from deepres.training.distribute import is_first_process

        run, data = self._run(), None
        if self.budget is not None:
            run, data = self._within_budget(run)
        callbacks: list[Callback] = []
        if self.lens is not None:
            from deepres.lens import Monitor

            callbacks.append(Monitor(self.lens, run.out, say=lambda text: print(text, file=sys.stderr)))
        result = train(run, data=data, resume=self.resume is not None, callbacks=callbacks)
        if is_first_process():
            test, bits = result.test, result.test.bits_per_byte
            text = f"test loss {test.loss:.4f}, {bits:.4f} bits per byte, " if bits is not None else ""
            say(
                f"\n{run.net}: {text}test error {test.top1:.2f} % (top-5 {test.top5:.2f} %) on {test.n:,} "
                f"{'examples' if bits is None else 'tokens'}, with the weights of epoch {result.best_epoch} (best on the validation "
                f"split, {result.val_error:.2f} %), {result.seconds:.0f} s\n{result.out}"
            )
        return 0

    def _run(self) -> Run:
        here: dict[str, Any] = {"device": self.device, "workers": self.workers}
        if self.resume is not None and self.again is not None:
            raise DeepresError("--resume continues a run and --again repeats one; give one of them")
        if self.resume is not None:
            return dataclasses.replace(Run.read(self.resume), out=str(self.resume), **here)
        if self.again is not None:
            counts = {"again", "out", "device", "workers", "builder", "lens", "budget"}
            changed = [key for key, value in vars(Train()).items() if key not in counts and getattr(self, key) != value]
            if idle := [f"--{key.replace('_', '-')}" for key in changed]:
                raise DeepresError(f"--again repeats a run as it was, so {', '.join(idle)} would change nothing; leave it out")
            saved = Run.read(self.again)
            return dataclasses.replace(saved, out=str(self.out or default_out(saved.net)), **here)
        if self.net is None and self.budget is None:
            raise DeepresError("which network? Give --net, such as --net resnet20-cifar (`deepres nets` lists them)")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Run)}
        values |= {"net": self.net or "auto", "recipe": self.recipe or "auto"}
        return Run(**{**values, "out": str(self.out or default_out(values["net"])), "options": self.changes()})

    def _within_budget(self, run: Run) -> tuple[Run, Data]:
        """The run that the table chooses, and its data. Raises ``DeepresError`` where ``--budget`` has nothing to choose."""
        from deepres.training.budget import plan_budget

        if self.resume is not None or self.again is not None:
            raise DeepresError("--budget chooses a new run; leave it out with --resume and --again")
        if "RANK" in os.environ:
            raise DeepresError("--budget measures one process; under torchrun give --net and --epochs instead")
        assert self.budget is not None
        plan = plan_budget(self.budget, run)
        say(f"--budget {self.budget}: {plan}")
        return dataclasses.replace(plan.run, out=str(self.out or default_out(plan.run.net))), plan.data
