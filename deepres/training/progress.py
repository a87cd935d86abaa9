"""What a long run shows and writes down: a bar with the time left, JSON lines, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG = "log.jsonl"


@dataclass(frozen=True)
class Record:
    """One epoch. Errors in percent, times in seconds, sizes in bytes."""

    epoch: int  # epochs behind
    step: int  # steps behind
    lr: float
    loss: float  # training, mean over the epoch
    train_error: float  # while training, mean over the epoch
    val_error: float
    grad_norm: float  # mean over the epoch
    images_per_second: float
    waited: float  # seconds that steps waited for data
    memory: int  # peak so far of this process, or on its GPU
    seconds: float  # of the run so far, earlier parts included
    test_error: float | None = None  # only if the run watches it
    unreadable: int = 0

    def __str__(self) -> str:
        test = f"  test {self.test_error:6.2f} %" if self.test_error is not None else ""
        bad = f"  {self.unreadable} unreadable images replaced" if self.unreadable else ""
        return (
            f"epoch {self.epoch:3d}  loss {self.loss:.4f}  train {self.train_error:6.2f} %  val {self.val_error:6.2f} %{test}"
            f"  lr {self.lr:<7.2g}  {self.images_per_second:,.0f} images/s{bad}"
        )


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return psutil.Process().memory_info().rss


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run, a line cut short by a crash left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (Path(folder) / LOG).read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


class Reporter:
    """Shows and logs a run; silent and writing nothing in all processes but one."""

    def __init__(self, out: Path | None, *, title: str, total: int, show: bool, done: int = 0) -> None:
        self.out = out
        self.show = show
        self.console = Console(stderr=True)
        self._began = time.perf_counter()
        self._board: Any = None
        self._progress: Progress | None = None
        if show and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %  {task.fields[now]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self.console,
            )
            self._task = self._progress.add_task(title, total=total, completed=done, now="")
        if out is not None:
            self._rewind(out, done)

    @staticmethod
    def _rewind(out: Path, done: int) -> None:
        """Drop what was logged after the checkpoint that the run resumes from."""
        kept = [record for record in read_log(out) if record["step"] <= done]
        part = out / f"{LOG}.part"
        part.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(part, out / LOG)

    def __enter__(self) -> Reporter:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        if self.show:
            self.console.print(text, highlight=False, markup=False)

    def step(self, done: int, rate: float, waited: float, memory: int) -> None:
        if self._progress:
            now = f"{rate:,.0f} images/s  data wait {waited:.0%}  {memory / 2**30:.1f} GiB"
            self._progress.update(self._task, completed=done, now=now)

    def epoch(self, record: Record) -> None:
        self.say(str(record))
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
