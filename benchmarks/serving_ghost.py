"""``deepres serve`` under load over loopback, with a network and with its ghost: p50 and p99 of the answers' times, and answers a second.

    python -m benchmarks.serving_ghost [--net resnet56-cifar] [--size 32]

It trains a network on the built-in digits, makes its ghost, starts a server of each, and asks both in turns: with one client, who
waits for each answer before the next question, and with as many as fill the batches. The clients share the machine with the server.
"""

from __future__ import annotations

import argparse
import http.client
import io
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.common import record
from deepres import Run, ghost, train
from deepres.ghosting import save_ghost
from deepres.serve.metrics import STAGES

CLIENTS = (1, 32)


@contextmanager
def server(model: Path) -> Iterator[int]:
    """A process that serves ``model``; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deepres", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _healthy(port):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended with exit code {process.returncode}")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _read_reply(stream: BinaryIO) -> int:
    """The status of a whole reply with a length."""
    status, length = int(stream.readline().split()[1]), 0
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    stream.read(length)
    return status


Totals = dict[str, tuple[float, float]]  # of a stage: its seconds and how often it came; of "batch": images and calls


def stage_totals(port: int) -> Totals:
    """Of each stage of a request so far, of a call of the network, and of the batches."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#"))
    names = {stage: ("deepres_stage_seconds", f'{{stage="{stage}"}}') for stage in STAGES}
    names |= {"call": ("deepres_call_seconds", ""), "request": ("deepres_request_seconds", "")}
    names["batch"] = ("deepres_batch_images", "")
    return {
        what: (float(lines[f"{name}_sum{label}"]), float(lines[f"{name}_count{label}"]))
        for what, (name, label) in names.items()
    }


def stage_means(after: Totals, before: Totals | None = None) -> dict[str, float]:
    """Mean milliseconds of each stage between two totals, or from the start, and the mean number of images in a batch."""
    found = {}
    for what, (amount, count) in after.items():
        less, fewer = before[what] if before is not None else (0.0, 0.0)
        found[what] = round((amount - less) * (1 if what == "batch" else 1000) / max(1.0, count - fewer), 3)
    return found


def load(port: int, bodies: list[bytes], clients: int, seconds: float, kind: str = "image/png") -> tuple[list[float], float]:
    """(seconds of each answer, answers a second) of ``clients`` who each wait for an answer before they ask again.

    ``kind``: media type of the bodies.
    """
    took: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def ask(me: int) -> None:
        wire = socket.create_connection(("127.0.0.1", port), timeout=60)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = wire.makefile("rb")
        turn = me
        while (began := time.perf_counter()) < end:
            body = bodies[turn % len(bodies)]
            head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            wire.sendall(head + body)  # in one piece, as two would wait for each other's acknowledgement
            status = _read_reply(stream)
            if status != 200:
                raise RuntimeError(f"the server answered {status}")
            took[me].append(time.perf_counter() - began)
            turn += clients
        stream.close()
        wire.close()

    threads = [threading.Thread(target=ask, args=(me,)) for me in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = sorted(one for mine in took for one in mine)
    return answers, len(answers) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet56-cifar")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--error", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    digits = load_digits().images
    bodies = []
    for digit in digits[-64:]:
        buffer = io.BytesIO()
        Image.fromarray((digit * 15.9375).astype("uint8")).save(buffer, "PNG")
        bodies.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        run, spared = Path(folder) / "run", Path(folder) / "ghost"
        how = Run(options.net, "digits", "digits", str(run), size=options.size, exits=0.5)
        train(how)
        made = ghost(run, "digits", error=options.error, size=options.size)
        save_ghost(made, spared)
        seen: dict[tuple[str, int], tuple[list[float], list[float]]] = {}
        with server(run) as whole, server(spared) as ghosts:
            ports = {"network": whole, "ghost": ghosts}
            for port in ports.values():
                load(port, bodies, CLIENTS[-1], 2.0)  # warm up
            for clients in CLIENTS:
                for turn in range(options.turns):
                    for name in list(ports)[:: 1 if turn % 2 else -1]:
                        answers, rate = load(ports[name], bodies, clients, options.seconds)
                        times, rates = seen.setdefault((name, clients), ([], []))
                        times += answers
                        rates.append(rate)
            stages = {name: stage_means(stage_totals(port)) for name, port in ports.items()}
    table = {
        f"{name}, {clients} client{'s' if clients > 1 else ''}": {
            "answers": len(times),
            "p50_ms": round(1000 * statistics.median(times), 2),
            "p99_ms": round(1000 * sorted(times)[int(0.99 * len(times))], 2),
            "answers_per_second": round(statistics.median(rates), 1),
            "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
        }
        for (name, clients), (times, rates) in seen.items()
    }
    known = made.verified
    about = {
        "what": f"{options.net} on digits at {options.size}x{options.size}, exits trained with it, over HTTP",
        "turns": options.turns,
        "seconds": options.seconds,
        "test_error": {"network": round(known.whole, 2), "ghost": round(known.ghost, 2)},
        "blocks_run": round(known.blocks, 3),
        "left_early": round(known.exited, 3),
    }
    record("serving", {**about, "load": table, "mean_ms_by_stage": stages})


if __name__ == "__main__":
    main()
