"""The folder of a run: taken when the run begins, and left if it could not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from deepres.errors import DeepresError
from deepres.paths import os_reason
from deepres.training.run import RUN_FILE


class Noted(Protocol):
    """A run's options, as a folder keeps them."""

    def to_json(self) -> str: ...


def claim_folder(out: Path, run: Noted, resume: bool) -> list[Path]:
    """Make the run's folder ``out`` and write ``run`` into it. Returns the file and the folders that were made, innermost first.

    Raises ``DeepresError`` for a folder that holds a run, unless it is resumed, and for one that cannot be written.
    """
    try:
        made = [path for path in (out / RUN_FILE, out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        if not resume and (out / RUN_FILE).exists():
            raise DeepresError(f"{out}: holds a run already; resume it with --resume, or choose another --out")
        if not (out / RUN_FILE).exists():
            (out / RUN_FILE).write_text(run.to_json())
    except OSError as error:
        raise DeepresError(f"{out}: cannot be written ({os_reason(error)}); choose another --out") from error
    return made


def leave_folder(out: Path, made: list[Path]) -> None:
    """Leave nothing of a run that could not begin, so that the same command with its mistake mended can.

    ``made``: what ``claim_folder`` returned; the settings of a run that is resumed are not among it, and stay.
    """
    if out / RUN_FILE in made and [path.name for path in out.iterdir()] == [RUN_FILE]:
        (out / RUN_FILE).unlink()
        with contextlib.suppress(OSError):
            for folder in made[1:]:
                folder.rmdir()
