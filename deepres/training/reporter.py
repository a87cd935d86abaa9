"""The callback that shows and logs a run: a bar with the time left, JSON lines, TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from deepres.callback import Callback
from deepres.models import find_pretrained
from deepres.training.display import RunDisplay
from deepres.training.progress import Record, peak_memory

if TYPE_CHECKING:
    from deepres.data import Batch
    from deepres.training.loop import Result
    from deepres.training.trainer import Trainer


class Reporter(Callback):
    """Shows a run on the terminal if ``show``, and logs it in the run's folder; the main process alone does either.

    ``remarks``: sentences for the first lines, on how network and data were opened.
    """

    def __init__(self, remarks: Sequence[str] = (), *, show: bool) -> None:
        self.show, self.remarks = show, remarks
        self.display = RunDisplay(None, show=False)

    def run_begins(self, trainer: Trainer) -> None:
        context, run, done = trainer.context, trainer.run, trainer.progress.done
        self.display = RunDisplay(trainer.out if context.is_main else None, show=self.show and context.is_main)
        self.display.rewind(done)
        plan = f", {trainer.plan}" if trainer.plan.length else ""
        where = f"{context.device}" + (f" x {context.world} processes" if context.world > 1 else "")
        start = f" from {run.init}" if run.init not in (None, "none") else ""
        if run.init == "pretrained":
            start = f" from the pretrained weights {find_pretrained(run.init, run.net).name}"
        settings = f"recipe {trainer.recipe.name}, {trainer.total} steps, {trainer.speed.name}{plan}, {where}"
        self.display.line(f"{run.net}{start}, {settings}\n{trainer.data}")
        for remark in self.remarks if not done else ():
            self.display.line(f"  {remark}")
        if done:
            self.display.line(f"resumed after step {done}")
        self.display.start(f"{run.net} on {trainer.data.name}", trainer.total, done)

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        if self.display.has_bar:
            pace, memory = trainer.pace, peak_memory(trainer.context.device)
            waiting = pace.waited / pace.seconds if pace.seconds else 0.0
            each, what = (trainer.data.prepare.size, "tokens") if trainer.data.is_text else (1, "images")
            now = f"{pace.rate * each:,.0f} {what}/s  data wait {waiting:.0%}  {memory / 2**30:.1f} GiB"
            self.display.advance(trainer.progress.done, now)

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.display.line(str(record))
        self.display.record(asdict(record))
        if self.display.out is None:
            return
        board = self.display.board(self.display.out, record.epoch)
        for name, value in asdict(record).items():
            if value is not None and name not in ("epoch", "step"):
                board.add_scalar(name, value, record.epoch)

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        self.display.close()
