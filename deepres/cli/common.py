"""Shared parts of the commands: output folders, messages, progress bars and resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deepres.errors import DeepresError

if TYPE_CHECKING:
    from rich.table import Table


def default_out(name: str) -> Path:
    """``runs/NAME-DATE``, of a path the last part alone; the date to the second keeps runs apart."""
    return Path("runs") / f"{Path(name).name.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_out(out: Path | None) -> None:
    """Raises ``DeepresError`` where the folder ``out`` cannot be written, before the work for it begins. Nothing is made."""
    if out is None:
        return
    there = next((folder for folder in (out, *out.parents) if folder.exists()), Path())
    if out.exists() and not out.is_dir():
        raise DeepresError(f"--out {out}: is a file; name a folder")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise DeepresError(f"{out}: cannot be written, because of {there}; choose another --out")


def first_of_several(out: Path | None) -> bool:
    """Return whether this process speaks and writes, of those that ``torchrun`` started. They have to share a folder that is named."""
    from deepres.training.distribute import is_first_process

    if out is None and "RANK" in os.environ:
        raise DeepresError("under torchrun all processes need the same folder: give --out")
    return is_first_process()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    built = Table(*head, box=None, pad_edge=False)
    for column in built.columns[1:]:
        column.justify = "right"
    for row in rows:
        built.add_row(*row)
    return built


def say(text: str) -> None:
    """A line on standard output, as it is: not coloured, not wrapped."""
    from rich.console import Console

    Console().print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class DataOption:
    """The data that a command works on."""

    data: str = "digits"  # digits, cifar10, or a folder of images or tar shards


def keywords(command: Any, *kinds: type[Any]) -> dict[str, Any]:
    """The options of a command that it inherits from the dataclasses ``kinds``, as keyword arguments."""
    return {field.name: getattr(command, field.name) for kind in kinds for field in dataclasses.fields(kind)}


COMMAND = "command.json"


def save_options(command: Any, out: Path) -> None:
    """Note a command's options in its folder, to go on with it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / COMMAND).write_text(json.dumps(dataclasses.asdict(command), default=str, indent=1))


def discard_options(out: Path) -> None:
    """Leave nothing of a command that could not begin, so that it can be given again with its mistake mended."""
    if [path.name for path in out.iterdir()] == [COMMAND]:
        (out / COMMAND).unlink()
        out.rmdir()


def saved_options(out: Path, kind: type[Any], renamed: dict[str, str] | None = None) -> Any:
    """The command that wrote a folder. ``renamed``: old names of its options, and their names now."""
    try:
        values = json.loads((out / COMMAND).read_text())
        values = {(renamed or {}).get(key, key): value for key, value in values.items()}
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except FileNotFoundError as error:
        raise DeepresError(f"{out}: holds no {COMMAND}, so there is nothing to go on with") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DeepresError(f"{out / COMMAND}: not what deepres {kind.__name__.lower()} wrote ({error})") from error


@contextlib.contextmanager
def resumable(command: str, *, same: bool = True) -> Iterator[None]:
    """Name the command that continues a run, when it is interrupted inside the context."""
    from deepres.training import Interrupted

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        how = " with the same options" if same else ""
        raise Interrupted(f"interrupted, and what is done is kept; `{command}`{how} goes on") from error


@contextlib.contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on a terminal; gives what it is to be told: (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def shares(what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left, on a terminal; gives what it is to be told: (what is under way, share done of it)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=what)


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[IO[str]]:
    """The file to write to, or standard output."""
    if path is None:
        yield sys.stdout
        return
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # file names need not be text
            yield file
    except OSError as error:
        raise DeepresError(f"{path}: cannot be written ({error.strerror})") from error
