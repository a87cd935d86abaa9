"""A server in a process of its own, asked over loopback."""

import io
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image


def png(image: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    said: str = ""  # the line behind the one with the address

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def worker(self) -> psutil.Process:
        return next(c for c in psutil.Process(self.process.pid).children() if "spawn_main" in " ".join(c.cmdline()))


def start(model: Path, *options: str) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "deepres", "serve", str(model), "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "deepres serves" in line, process.communicate()
    server = Server(process, port, process.stdout.readline())
    for _ in range(100):
        try:
            assert server.ask("/health")[0] == 200
            return server
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("no answer")


def wait_until(holds, seconds: float = 60.0) -> None:
    """Wait for a condition, and fail where it does not come about."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
