"""Paths as users give them, and the cache folder: the one rule for all packages."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from deepres.errors import DeepresError


def user_path(name: str | Path) -> Path:
    """A path as it was given, with a leading ``~`` expanded.

    Raises ``DeepresError`` where the home folder is not known.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DeepresError(f"{name}: the home folder is not known; give the path without ~") from error


def name_of(path: Path) -> str:
    """The last part of a path's name, also of ``.`` and ``..``, which have none of their own."""
    return os.path.basename(os.path.abspath(path))


def os_reason(error: OSError) -> str:
    """Say why a file or folder cannot be written. The system says only "File exists" of a link to what does not exist."""
    path = Path(error.filename) if isinstance(error.filename, str | os.PathLike) else None
    if path is not None and path.is_symlink() and not path.exists():
        return f"it is a link to {path.readlink()}, which does not exist; make that folder, or choose another one"
    return error.strerror or str(error)


def cache_folder() -> Path:
    """The cache folder, for what can be made again: decoded data sets, measured speeds, compiled kernels.

    ``DEEPRES_CACHE`` where that is set, else ``~/.cache/deepres``, or a private temporary folder where home cannot be found or
    written.
    """
    chosen = os.environ.get("DEEPRES_CACHE")
    return user_path(chosen) if chosen else _default_folder()


@cache
def _default_folder() -> Path:
    try:
        folder = Path.home() / ".cache" / "deepres"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (RuntimeError, OSError):
        pass
    folder = Path(tempfile.gettempdir()) / f"deepres-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():  # nobody else could have put files there
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="deepres-"))
