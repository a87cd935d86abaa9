"""Entry point: parse, run one command, turn errors into a sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from deepres import __version__
from deepres.cli.parsing import BuilderOption, parse
from deepres.cli.terminal import expand_home, rename_options, report_unforeseen, tolerate_any_name
from deepres.errors import DeepresError, first_line, lacks_memory, nearest
from deepres.paths import os_reason

DESCRIPTION = "Deep residual learning, complete: build, train, look inside, shrink, speed up and serve residual networks."
# command -> one line for `deepres --help`. The class of the same name in deepres/cli/COMMAND.py holds its options.
COMMANDS = {
    "degrade": "Show the degradation problem: deeper plain networks train worse, residual ones do not.",
    "pack": "Pack a folder of images into tar shards.",
    "paper": "Reproduce the claims of the ResNet papers as runs.",
    "train": "Train a network.",
    "evaluate": "Test a trained network, or an ensemble: errors, by class, confusion, calibration.",
    "predict": "Classify images with a trained network.",
    "generate": "Continue a text with a language model.",
    "look": "Show what the depth of a network does, on an interactive page.",
    "shrink": "Remove the depth that a network does not need, while it trains.",
    "ghost": "Make a trained network adapt its depth to each input.",
    "detect": "Train, evaluate and use a detector: `deepres detect train`, `evaluate`, `predict`, `look`, `shrink`.",
    "serve": "Serve a trained network or a ghost over HTTP.",
    "info": "Describe a network: stages, parameters, multiply-adds, memory. Without one: versions and devices.",
    "nets": "List the networks that have a name.",
    "optimize": "Find the fastest engine of this machine that keeps a network's answers.",
    "export": "Export a trained network to ONNX, OpenVINO, torch.export or an AOTInductor package.",
    "push": "Write a trained network as a folder for the Hugging Face Hub, or upload it.",
}
RENAMED = {
    "look": {"lesions": "ablations"},
    "shrink": {"press": "constrain"},
}  # command -> old name of an option -> its name now
EXIT_CODES = """exit codes:
  0   done
  1   done in part: something was skipped and named, or the run was interrupted and can be resumed
  2   bad input, or a machine that lacks something; one sentence says what
  70  an unforeseen error, a fault of deepres; one line says where its traceback was written"""
ENVIRONMENT = """environment:
  DEEPRES_BUILDERS  MODULE:FUNCTION of yours, as --builder of the commands that open a network
  DEEPRES_CACHE     folder for decoded data sets, measured speeds and compiled kernels [~/.cache/deepres]
  DEEPRES_KERNELS   eager: use no compiled kernels"""
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h


def main(argv: list[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return its exit code (see ``EXIT_CODES``)."""
    tolerate_any_name()
    argv = [expand_home(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
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
        print(f"deepres: {error.filename or 'a file'}: {os_reason(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if lacks_memory(error):
            print(f"deepres: out of memory ({first_line(error)}); lower --batch or --size, or free memory", file=sys.stderr)
            return 2
        print(f"deepres: {report_unforeseen(error, argv)}", file=sys.stderr)
        return UNFORESEEN


def _run(argv: list[str]) -> int:
    if argv in (["--version"], ["-V"]):
        print(f"deepres {__version__}")
        return 0
    if not argv or argv[0] in ("--help", "-h"):
        print_help()
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        raise DeepresError(f"there is no command {name!r}{nearest(name, COMMANDS) or '; `deepres --help` lists them'}")
    rest = rename_options(rest, RENAMED.get(name, {}))
    asked = parse(command(name), f"deepres {name}", rest)
    if isinstance(asked, BuilderOption):
        asked.allow_builders()
    return int(asked.run())


def command(name: str) -> Any:
    """The dataclass of a command's options, whose ``run`` carries it out."""
    return getattr(importlib.import_module(f"deepres.cli.{name}"), name.capitalize())


def print_help() -> None:
    width = max(map(len, COMMANDS))
    print(f"usage: deepres COMMAND [OPTIONS]\n\n{DESCRIPTION}\n\ncommands:")
    for name, line in COMMANDS.items():
        print(f"  {name:{width}}  {line}")
    print(f"\n`deepres COMMAND --help` explains a command's options.\n\n{ENVIRONMENT}\n\n{EXIT_CODES}")
