"""The servers of ``benchmarks.serving``: the environment of the rivals, starting and stopping, and the processor time that they take."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

BOUNDARY = "deepres-benchmark"
RIVALS = ("litserve", "bentoml")
READY = 300.0  # seconds that a server may take to answer


@dataclass(frozen=True)
class Server:
    """A server under test."""

    name: str
    command: tuple[str, ...]  # the port follows
    form: bool  # whether it takes a multipart form, or the image file as it is


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    port: int
    process: psutil.Process

    def core_seconds(self) -> dict[str, float]:
        """Processor time so far: of the server's first process, of those that it started, and of this one, which holds the clients."""
        own = {"first process": _spent(self.process), "clients": _spent(psutil.Process())}
        return {**own, "other processes": sum(_spent(one) for one in self.process.children(recursive=True))}


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def environment(folder: Path) -> str | None:
    """The Python with LitServe and BentoML in ``folder``, installed where it is not there; None where that fails."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = folder / "lib" / version / "site-packages" / "shared.pth"
        shared.write_text("\n".join(site.getsitepackages()) + "\n")
    if subprocess.run([str(python), "-c", "import litserve, bentoml"], capture_output=True).returncode:
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *RIVALS], capture_output=True, text=True)
        if done.returncode:
            print(f"left out: {', '.join(RIVALS)} ({done.stderr.strip().splitlines()[-1]})", file=sys.stderr)
            return None
    return str(python)


def servers(model: str, engine: str, rivals: str | None) -> list[Server]:
    ours = (sys.executable, "-m", "deepres", "serve", model)
    found = [Server("deepres", (*ours, "--engine", engine, "--port"), False)]
    found.append(Server("deepres, PyTorch", (*ours, "--engine", "none", "--port"), False))
    for library in RIVALS if rivals else ():
        theirs = (str(rivals), "-m", "benchmarks.serving_rivals", library, "--model", model)
        found.append(Server(f"{library}, tuned", (*theirs, "--engine", engine, "--port"), True))
        found.append(Server(library, (*theirs, "--port"), True))
    return found


@contextmanager
def running(server: Server, sample: bytes, log: Path) -> Iterator[Running | None]:
    """A process of ``server``, or None where it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "w") as file:
        process = subprocess.Popen([*server.command, str(port)], stdout=file, stderr=file, start_new_session=True)
    try:
        yield Running(port, psutil.Process(process.pid)) if _answers(port, server, sample, process) else None
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


def _answers(port: int, server: Server, sample: bytes, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + READY
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if server.form else {}
    while time.monotonic() < end and process.poll() is None:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", data=sample, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as reply:
                return bool(reply.status == 200 and reply.read())
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return False
            time.sleep(0.5)
        except OSError:
            time.sleep(0.5)
    return False
