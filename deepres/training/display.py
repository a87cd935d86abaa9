"""Display and logs of a run under way: lines and a bar on the terminal, JSON lines and TensorBoard in the run's folder."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deepres.training.progress import LOG, read_log


class RunDisplay:
    """Terminal and log files of one process of a run: ``show`` for the terminal, ``out`` for the files."""

    def __init__(self, out: Path | None, *, show: bool) -> None:
        self.out, self.show = out, show
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._board: Any = None

    def rewind(self, done: int) -> None:
        """Drop what was logged after step ``done``, from which the run resumes."""
        if self.out is None or not (self.out / LOG).exists():
            return
        kept = [record for record in read_log(self.out) if record["step"] <= done]
        part = self.out / f"{LOG}.part"
        part.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(part, self.out / LOG)

    def start(self, title: str, total: int, done: int) -> None:
        """Show the bar, where there is a terminal: ``done`` of ``total`` steps, and the time left."""
        if not (self.show and self.console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[now]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, now="")
        self._bar.start()

    @property
    def has_bar(self) -> bool:
        """True while the bar is shown, for callers whose text for it costs time."""
        return self._bar is not None

    def advance(self, done: int, now: str) -> None:
        """Move the bar to step ``done``, with ``now`` beside it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, now=now)

    def line(self, text: str) -> None:
        """Print a line, above the bar."""
        if self.show:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def record(self, values: Mapping[str, Any]) -> None:
        """Append an epoch's figures to the log."""
        if self.out is not None:
            with open(self.out / LOG, "a") as file:
                file.write(json.dumps(values) + "\n")

    def board(self, out: Path, epoch: int) -> Any:
        """The TensorBoard writer in the run's folder ``out``, which is made when it is first used, in ``epoch``."""
        if self._board is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(out / "tensorboard"), purge_step=epoch)
        return self._board

    def close(self) -> None:
        """Stop the bar and close the files."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
