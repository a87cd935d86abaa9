"""Selection of the experiments that fit a budget of time, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deepres.paper.experiment import Experiment
from deepres.paper.lab import Lab, Outcome, timed
from deepres.training import Record


class Planner:
    """Runs experiments in the order of their cost, and leaves out those that do not fit the budget.

    The time of an experiment is predicted from the previous ones, by their seconds per unit of ``Experiment.cost``. The first
    experiment always runs.
    """

    def __init__(self, experiments: list[Experiment], budget: float | None, console: Console) -> None:
        self.experiments = sorted(experiments, key=lambda one: one.cost) if budget is not None else experiments
        self.budget = budget
        self.left_out: list[str] = []
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[now]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("experiments", total=len(experiments), now="")

    def __enter__(self) -> Planner:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def show_epoch(self, name: str, record: Record) -> None:
        """Show the figures of an epoch in the bar."""
        now = f"{name}, epoch {record.epoch}: training error {record.train_error:.1f} %"
        self.bar.update(self.task, now=now)

    def outcomes(self, lab: Lab) -> Iterator[Outcome]:
        """Run the experiments and yield their outcomes."""
        spent = cost = 0.0
        for one in self.experiments:
            began = time.perf_counter()
            if self.budget is not None and cost and spent + one.cost * spent / cost > self.budget:
                self.left_out.append(one.name)
                continue
            self.bar.update(self.task, description=one.name)
            yield timed(one.run, lab)
            spent, cost = spent + time.perf_counter() - began, cost + one.cost
            self.bar.advance(self.task)
