"""The command line's dealings with the shell: home folders, names in any encoding, the file of an unforeseen error."""

from __future__ import annotations

import codecs
import importlib.metadata
import io
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback

from deepres import __version__
from deepres.errors import first_line

ERRORS = "deepres-output"  # our way to encode what the terminal's encoding lacks


def expand_home(argument: str) -> str:
    """Expand ``~`` and ``~user`` at the start of a value, which shells leave alone in ``--out=~/x`` and ``hf:~/x``."""
    found = re.fullmatch(r"((?:--[\w-]+=)?(?:\w+:)?)(~[\w.-]*(?:/.*)?)", argument, re.DOTALL)
    return found[1] + os.path.expanduser(found[2]) if found else argument


def rename_options(arguments: list[str], names: dict[str, str]) -> list[str]:
    """``arguments`` with each option under its present name; a line on standard error for each old name."""
    renamed = []
    for argument in arguments:
        found = re.fullmatch(r"--(no-)?([\w-]+)((?:=.*)?)", argument, re.DOTALL)
        new = names.get(found[2].replace("_", "-")) if found else None
        if found and new:
            print(f"deepres: --{found[2]} is now called --{new}; the old name goes in the next version", file=sys.stderr)
            argument = f"--{found[1] or ''}{new}{found[3]}"
        renamed.append(argument)
    return renamed


def _encode(error: UnicodeError) -> tuple[str | bytes, int]:
    """File names that are no text come out as the bytes that they are, characters that the encoding lacks as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = error.object[error.start]
    if "\udc80" <= one <= "\udcff":
        return bytes([ord(one) - 0xDC00]), error.start + 1
    return one.encode("ascii", "backslashreplace"), error.start + 1


def tolerate_any_name() -> None:
    """Let standard output and error take every file name, whatever the locale is, and nothing where the shell has closed them."""
    codecs.register_error(ERRORS, _encode)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the life of the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def report_unforeseen(error: Exception, argv: list[str]) -> str:
    """Write a traceback, with the versions and the command line, into a temporary file. Returns a line that names it."""
    kind, said = type(error).__name__, first_line(error)
    what = kind if said == kind else f"{kind}: {said}"
    head = f"deepres {__version__}, torch {importlib.metadata.version('torch')}, Python {platform.python_version()}, {platform.platform()}"
    text = "\n".join([head, shlex.join(["deepres", *argv]), "", "".join(traceback.format_exception(error))])
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="deepres-", suffix=".traceback", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError:  # nowhere to write to: the traceback itself is better than none
        print(text, file=sys.stderr)
        return f"an unforeseen error ({what}); its traceback stands above"
    return f"an unforeseen error ({what}); its traceback was written to {file.name}"
