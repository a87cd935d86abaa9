"""The callback that shows and logs a run: a bar with the time left, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deepres.callback import Callback
from deepres.models import find_pretrained
from deepres.training.progress import LOG, Record, peak_memory, read_log

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
        self.console = Console(stderr=True)
        self._board: Any = None
        self._progress: Progress | None = None

    def run_begins(self, trainer: Trainer) -> None:
        context, run, done = trainer.context, trainer.run, trainer.progress.done
        self.show = self.show and context.is_main
        self.out = trainer.out if context.is_main else None
        if self.out is not None and (self.out / LOG).exists():
            _rewind(self.out, done)
        plan = f", {trainer.plan}" if trainer.plan.length else ""
        where = f"{context.device}" + (f" x {context.world} processes" if context.world > 1 else "")
        start = f" from {run.init}" if run.init not in (None, "none") else ""
        if run.init == "pretrained":
            start = f" from the pretrained weights {find_pretrained(run.init, run.net).name}"
        settings = f"recipe {trainer.recipe.name}, {trainer.total} steps, {trainer.speed.name}{plan}, {where}"
        self.log(f"{run.net}{start}, {settings}\n{trainer.data}")
        for remark in self.remarks if not done else ():
            self.log(f"  {remark}")
        if done:
            self.log(f"resumed after step {done}")
        if self.show and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %  {task.fields[now]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self.console,
            )
            title = f"{run.net} on {trainer.data.name}"
            self._task = self._progress.add_task(title, total=trainer.total, completed=done, now="")
            self._progress.start()

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        if self._progress:
            pace, memory = trainer.pace, peak_memory(trainer.context.device)
            waiting = pace.waited / pace.seconds if pace.seconds else 0.0
            each, what = (trainer.data.prepare.size, "tokens") if trainer.data.is_text else (1, "images")
            now = f"{pace.rate * each:,.0f} {what}/s  data wait {waiting:.0%}  {memory / 2**30:.1f} GiB"
            self._progress.update(self._task, completed=trainer.progress.done, now=now)

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        self.log(str(record))
        if self.out is None:
            return
        with open(self.out / LOG, "a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        if self._board is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=record.epoch)
        for name, value in asdict(record).items():
            if value is not None and name not in ("epoch", "step"):
                self._board.add_scalar(name, value, record.epoch)

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        if self._progress:
            self._progress.stop()
        if self._board is not None:
            self._board.close()

    def log(self, text: str) -> None:
        """Print a line, above the bar."""
        if self.show:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _rewind(out: Path, done: int) -> None:
    """Drop what was logged after the checkpoint that the run resumes from."""
    kept = [record for record in read_log(out) if record["step"] <= done]
    part = out / f"{LOG}.part"
    part.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(part, out / LOG)
