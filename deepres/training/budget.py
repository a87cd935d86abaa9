"""``train --budget``: the network, recipe and epochs with the least expected error that fit into a time on this machine.

The expected errors are those of trainings that were measured, in ``expected.json``, which ``benchmarks.crossing`` writes; how long each
takes here is predicted from a short trial. Nothing is interpolated: where the table ends, a longer budget changes nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from deepres.data import Data, open_data
from deepres.errors import DeepresError
from deepres.evaluation import timing
from deepres.options import parse_seconds
from deepres.training.distribute import DistributedContext, pick_device
from deepres.training.recipes import Recipe, recipe
from deepres.training.run import Run
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness
from deepres.training.trainer import Trainer

ANY = "auto"  # in place of a network: any of the table
FORWARD = 1 / 3  # time of validating an image, as a share of the time of training on it
RESERVE = 1.1  # on the predicted time: other work on the machine, reading the data, the first step
_TRIAL = 0.01  # epochs of the run that is tried: so short that no mode is compiled for the trial


@dataclass(frozen=True)
class ExpectedError:
    """Test error of a training that was measured, in percent: mean over ``n`` seeds."""

    net: str
    recipe: str
    lr: float  # highest learning rate
    epochs: float
    error: float
    spread: float | None  # standard deviation over the seeds; None of one
    n: int
    origin: str  # of the measurement

    def __str__(self) -> str:
        spread = f" ± {self.spread:.1f}" if self.spread is not None else ""
        seeds = "one seed" if self.n == 1 else f"{self.n} seeds"
        return f"{self.error:.1f}{spread} % ({seeds})"


@dataclass(frozen=True)
class ExpectedErrors:
    """The measured trainings, and the data that they were measured on."""

    data: str
    images: int  # for training
    size: int  # side of the images in pixels
    rows: tuple[ExpectedError, ...]  # by network, from the least deep on


@dataclass(frozen=True, eq=False)
class BudgetPlan:
    """Result of ``plan_budget``: a run that fits the budget, and what is expected of it."""

    run: Run
    data: Data
    expected: ExpectedError
    table: ExpectedErrors
    seconds: float  # predicted time of the run
    rate: float  # training images per second in the trial
    is_last: bool  # the table holds no better training of the networks and recipes asked for

    def __str__(self) -> str:
        table, row = self.table, self.expected
        text = (
            f"{row.net}, {row.epochs:g} epochs of {row.recipe} to a rate of {row.lr:g}: about {_duration(self.seconds)} at "
            f"{self.rate:,.0f} images/s; expected test error {row} on {table.data}"
        )
        if len(self.data.train) != table.images:
            text += f"; other data, such as {self.data.name}, will have another error"
        if self.is_last:
            text += "; the table ends here, so for a longer run give --epochs"
        return text


@cache
def expected_errors() -> ExpectedErrors:
    """The table that ``plan_budget`` chooses from."""
    found = json.loads((files("deepres.training") / "expected.json").read_text(encoding="utf-8"))
    return ExpectedErrors(found["data"], found["images"], found["size"], tuple(ExpectedError(**row) for row in found["rows"]))


def plan_budget(budget: str, run: Run, data: Data | None = None, table: ExpectedErrors | None = None) -> BudgetPlan:
    """Choose the training with the least expected error that ends within ``budget``, such as ``"15m"``, on this machine.

    ``run`` names the data and all other options. Its network is ``"auto"`` for any of the table, and its recipe ``"auto"`` for any. A trial
    of each network that may fit takes some seconds, which count as spent. The plan's run has network, recipe, rate, epochs and speed
    filled in; ``train(plan.run, data=plan.data)`` trains it. ``table``: measured errors in place of those that come with deepres.

    Raises ``DeepresError`` for what is no time, for a network, recipe or data outside the table, for options that the table does not
    know, and for a budget that the shortest training exceeds.
    """
    ends = time.perf_counter() + parse_seconds(budget)
    table = table if table is not None else expected_errors()
    rows = _rows_for(run, table)
    data = data if data is not None else open_data(run.data, size=run.size)
    if data.is_text or data.shape != (3, table.size, table.size):
        what = "a text" if data.is_text else f"images of {'x'.join(map(str, data.shape))}"
        raise DeepresError(
            f"{data.name}: holds {what}, and the table of --budget is for colour images of {table.size}x{table.size} pixels; give --net "
            "and --epochs instead"
        )
    data.need_training()
    best: BudgetPlan | None = None
    shortest: tuple[float, ExpectedError] | None = None
    step = 0.0  # seconds of a step of the network before, which is no deeper: a lower bound of the next one's
    for net in dict.fromkeys(row.net for row in rows):
        mine = [row for row in rows if row.net == net]
        left = ends - time.perf_counter()
        if shortest is not None and min(_seconds(row, data, step) for row in mine) > left:
            continue
        trainer = _trainer(replace(run, net=net, recipe=mine[0].recipe, epochs=_TRIAL), data)
        step = _step_seconds(trainer)
        left = ends - time.perf_counter()
        for row in mine:
            seconds = _seconds(row, data, step)
            if shortest is None or seconds < shortest[0]:
                shortest = seconds, row
            if seconds <= left and (best is None or row.error < best.expected.error):
                chosen = replace(run, net=net, recipe=row.recipe, lr=row.lr, epochs=row.epochs, speed=trainer.speed.name)
                is_last = row.error <= min(one.error for one in rows)
                best = BudgetPlan(chosen, data, row, table, seconds, trainer.loader.batch / step, is_last)
    if best is None:
        assert shortest is not None
        seconds, row = shortest
        raise DeepresError(
            f"--budget {budget}: the shortest training of the table, {row.epochs:g} epochs of {row.net}, takes about {_duration(seconds)} "
            "on this machine; raise it, or give --net and --epochs instead"
        )
    return best


def _rows_for(run: Run, table: ExpectedErrors) -> list[ExpectedError]:
    """The rows that ``run`` may choose from.

    Raises ``DeepresError`` for what the table does not hold.
    """
    free: dict[str, object] = {
        "epochs": None,
        "lr": None,
        "batch": None,
        "exits": None,
        "init": None,
        "width": 1.0,
        "options": {},
    }
    given = [name for name, value in free.items() if getattr(run, name) not in (value, "none")]
    if given:
        raise DeepresError(
            f"--budget: its table was measured with networks and recipes as they are; leave out {', '.join(f'--{name}' for name in given)}"
        )
    rows = table.rows
    named = run.recipe.name if isinstance(run.recipe, Recipe) else run.recipe
    for option, asked in (("net", run.net), ("recipe", named)):
        known = dict.fromkeys(getattr(row, option) for row in rows)
        if asked not in (ANY, *known):
            where = f" for {run.net}" if option == "recipe" and run.net != ANY else ""
            raise DeepresError(
                f"--{option} {asked}: the table of --budget holds {', '.join(known)}{where}; give one of these, or --epochs instead"
            )
        rows = tuple(row for row in rows if asked in (ANY, getattr(row, option)))
    return list(rows)


def _trainer(run: Run, data: Data) -> Trainer:
    return Trainer(replace(run, out=None), data, DistributedContext(pick_device(run.device)))


def _step_seconds(trainer: Trainer) -> float:
    """Seconds of a training step with the loading of its batch, measured on a few."""
    trainer.model.train()
    batches = (batch for epoch in range(10**6) for batch in trainer.loader.epoch(epoch))
    with exactness(SPEEDS[trainer.speed.name]), trainer.heap():
        times = timing.call_times(lambda: trainer.step(next(batches)), trainer.context.device, repeats=5, warmup=2)
    return statistics.median(times)


def _seconds(row: ExpectedError, data: Data, step: float) -> float:
    """Predicted seconds of a training with a validation after each epoch and a test at the end, for ``step`` seconds of a step."""
    each = step / recipe(row.recipe).batch
    tested = row.epochs * len(data.val) + len(data.test)
    return RESERVE * each * (row.epochs * len(data.train) + FORWARD * tested)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
