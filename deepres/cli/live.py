"""A table that fills in while several networks train, and the time that is left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from deepres.training import Record

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], top: float = 100.0) -> str:
    """Errors from 0 to ``top`` as a row of little bars."""
    return "".join(_BARS[min(len(_BARS) - 1, int(v / top * len(_BARS)))] for v in values)


class Board:
    """One row a network. On a terminal it is redrawn in place; elsewhere each epoch gives a line."""

    def __init__(self, console: Console, depths: tuple[int, ...], seeds: int, epochs: float) -> None:
        self.console = console
        self.epochs = epochs
        self.total = 2 * seeds * epochs * sum(depths)  # a network's time grows with its depth
        self.done = 0.0
        self.start: tuple[float, float] | None = None  # (time, done) after the first epoch, which warms up
        self.rows: dict[tuple[str, int], list[Record]] = {}
        self.live = Live(self._draw(), console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.update(Text("") if kind is None else self._draw())
            self.live.stop()

    def update(self, net: str, seed: int, record: Record) -> None:
        self.rows.setdefault((net, seed), []).append(record)
        self.done += int("".join(c for c in net.split("-")[0] if c.isdigit()))
        self.start = self.start or (time.perf_counter(), self.done)
        if self.live:
            self.live.update(self._draw())
        else:
            self.console.print(
                f"{net.removesuffix('-cifar'):10s} seed {seed}  epoch {record.epoch:3d}  loss {record.loss:.4f}  "
                f"training error {record.train_error:6.2f} %  test error {record.test_error or 0:6.2f} %  {self._left()}",
                highlight=False,
                soft_wrap=True,
            )

    def _left(self) -> str:
        if self.start is None or self.done == self.start[1]:
            return ""
        seconds = (time.perf_counter() - self.start[0]) * (self.total - self.done) / (self.done - self.start[1])
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left" if seconds >= 1 else ""

    def _draw(self) -> Group:
        table = Table("network", "seed", "epoch", "training error", "test error", "training error so far", box=None)
        for (net, seed), records in self.rows.items():
            last = records[-1]
            table.add_row(
                net.removesuffix("-cifar"),
                str(seed),
                f"{last.epoch}/{self.epochs:g}",
                f"{last.train_error:6.2f} %",
                f"{last.test_error or 0:6.2f} %",
                sparkline([record.train_error for record in records]),
            )
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=self.total, completed=min(self.done, self.total), width=40), self._left())
        return Group(table, Text(""), bar)
