"""Entry point: parse, run one command, turn errors into a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import tyro

from deepres import __version__
from deepres.cli.depth import Ghost, Look, Shrink
from deepres.cli.learn import Degrade, Pack, Paper, Train
from deepres.cli.use import Evaluate, Info, Nets, Optimize, Predict, Serve
from deepres.errors import DeepresError

Command = (
    Annotated[Degrade, tyro.conf.subcommand("degrade")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Paper, tyro.conf.subcommand("paper")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Look, tyro.conf.subcommand("look")]
    | Annotated[Shrink, tyro.conf.subcommand("shrink")]
    | Annotated[Ghost, tyro.conf.subcommand("ghost")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Nets, tyro.conf.subcommand("nets")]
    | Annotated[Optimize, tyro.conf.subcommand("optimize")]
)
DESCRIPTION = "Deep residual learning, complete: h(x) = f(x) + x, built, trained, compared and used."


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 done in part (or interrupted, and resumable), 2 bad input."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["--version"], ["-V"]):
        print(f"deepres {__version__}")
        return 0
    try:
        code = tyro.cli(Command, prog="deepres", description=DESCRIPTION, args=argv).run()
        sys.stdout.flush()
        return int(code)
    except DeepresError as error:
        print(f"deepres: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("deepres: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `deepres ... | head` closed the pipe; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"deepres: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
