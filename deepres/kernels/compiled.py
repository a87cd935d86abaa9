"""The compiled kernels of this processor: built once, kept in the cache, loaded when they are first used.

Without a C++ compiler, or on another kind of machine, there are none, and the operations run eagerly; ``status`` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from deepres.paths import cache_folder

SWITCH = "DEEPRES_KERNELS"  # the environment variable that turns them off: "eager"
_SOURCES = ("norm_act.cpp", "pool.cpp")
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}
_SECONDS = 300  # that a compilation may take


@dataclass(frozen=True)
class Status:
    """Status of the compiled kernels: whether they are used."""

    capability: str | None  # "AVX512" or "AVX2"; None: operations run eagerly
    reason: str  # where the kernels are, or why there are none

    def __str__(self) -> str:
        return f"compiled for {self.capability} ({self.reason})" if self.capability else f"eager: {self.reason}"


def status() -> Status:
    """Return whether compiled kernels are used on this machine, and if not, why; builds them where they are not built yet."""
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where operations run eagerly."""
    return _load()[0]


@cache
def _load() -> tuple[ctypes.CDLL | None, Status]:
    if os.environ.get(SWITCH, "") == "eager":
        return None, Status(None, f"{SWITCH}=eager is set")
    capability = torch.backends.cpu.get_cpu_capability()
    capability = "AVX512" if capability.startswith("AVX512") else capability
    if platform.system() != "Linux" or capability not in _FLAGS:
        return None, Status(
            None, f"there are kernels for AVX2 and AVX-512 on Linux, not for {capability} on {platform.system()}"
        )
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))), None)
    try:
        path = _path(capability)
        if not path.exists():
            if compiler is None:
                return None, Status(None, f"no C++ compiler was found ({', '.join(_COMPILERS)}, or the variable CXX)")
            with _locked(path.with_suffix(".lock")):
                if not path.exists():  # another process may have built it meanwhile
                    compile_kernels(compiler, capability, path)
        return ctypes.CDLL(str(path)), Status(capability, str(path))
    except subprocess.CalledProcessError as error:
        last = next((line for line in error.stderr.splitlines() if "error" in line), "no message")
        return None, Status(None, f"{compiler} could not build the kernels: {last.strip()}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, Status(None, f"the kernels could not be built in the cache folder ({error})")


def compile_kernels(compiler: str, capability: str, path: Path) -> None:
    """Compile the kernels for ``capability`` into ``path``, which appears whole or not at all.

    Raises ``subprocess.CalledProcessError`` with the compiler's messages.
    """
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        for name in _SOURCES:
            (Path(folder) / name).write_text(_source(name))
        sources = [str(Path(folder) / name) for name in _SOURCES]
        flags = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off", *_FLAGS[capability])
        defined = (f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}")
        paths = (f"-I{home / 'include'}", f"-L{home / 'lib'}")
        command = [compiler, *flags, *_extra(capability), *defined, *paths, "-o", str(built), *sources, "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        os.replace(built, path)


def _extra(capability: str) -> tuple[str, ...]:
    """Flags for what only some processors of this capability have: rounding to bfloat16 by one instruction."""
    return ("-mavx512bf16",) if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported() else ()


def _source(name: str) -> str:
    return (files("deepres.kernels") / name).read_text(encoding="utf-8")


def _path(capability: str) -> Path:
    """The path of the library for these sources, this PyTorch and this capability."""
    parts = (*map(_source, _SOURCES), torch.__version__, *_FLAGS[capability], *_extra(capability))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"kernels-{capability.lower()}-{key}.so"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build; the lock goes with its holder, so that none waits for a process that died."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
