"""``deepres serve`` beside LitServe and BentoML: the same network, the same photographs, one client and 32.

    python -m benchmarks.serving [--net resnet50] [--environment FOLDER]

The servers run at the same time and are asked in turns; the clients share the machine with them. ``deepres`` and the tuned rivals run
the network on the engine that ``deepres serve`` chooses, and batch up to 32 images; ``deepres, PyTorch`` and the plain rivals run it in
PyTorch. Beside them stand decoding plus the call alone, and what the engine gives at the batch size that 32 clients lead to.

LitServe and BentoML are installed into a virtual environment of their own, ``--environment``, which shares this one's PyTorch. A turn is
written to ``--folder`` when it is done, and turns that are there are skipped, so that the run can be interrupted. The result is
``benchmarks/results/serving-rivals.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import site
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import deepres
from benchmarks.common import Remote, record
from benchmarks.serving_ghost import CLIENTS, breakdown, load
from benchmarks.serving_rivals import load as load_classifier
from deepres.paths import cache_folder

NAME = "serving-rivals"
BOUNDARY = "deepres-benchmark"
RIVALS = ("litserve", "bentoml")
READY = 300.0  # seconds that a server may take to answer


@dataclass(frozen=True)
class Server:
    """A server under test."""

    name: str
    command: tuple[str, ...]  # the port follows
    form: bool  # whether it takes a multipart form, or the image file as it is


def photographs() -> list[bytes]:
    """64 JPEG files of 500 x 375 pixels, as ImageNet's are: windows of two photographs."""
    files = []
    for i in range(64):
        whole = Image.fromarray(load_sample_images().images[i % 2])
        left, top = (i * 3) % 140, (i * 2) % 52
        buffer = io.BytesIO()
        whole.crop((left, top, left + 500, top + 375)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def as_form(image: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


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
def running(server: Server, sample: bytes, log: Path) -> Iterator[int | None]:
    """A process of ``server``; gives its port, or None where it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "w") as file:
        process = subprocess.Popen([*server.command, str(port)], stdout=file, stderr=file, start_new_session=True)
    try:
        yield port if _answers(port, server, sample, process) else None
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


def direct(model: str, engine: str, batch: int, decode: bool) -> tuple[Any, str]:
    """The call of the network on ``engine``, in a process of its own: with decoding of one photograph, or of a prepared batch alone."""
    from benchmarks import serving_rivals

    os.environ[serving_rivals.MODEL], os.environ[serving_rivals.ENGINE] = model, engine
    if decode:
        classify, _ = load_classifier()
        file = photographs()[0]
        return lambda: classify([Image.open(io.BytesIO(file))]), "decoding and the call"
    from deepres.engines import optimize
    from deepres.models import open_model

    opened = open_model(model)
    prepare = opened.preparation()
    generator = torch.Generator().manual_seed(0)
    fast = optimize(opened.model.eval(), prepare.example(8, generator), engine=engine, seconds=10.0)
    pixels = (torch.rand(batch, prepare.channels, prepare.size, prepare.size, generator=generator) * 255).byte()

    def call() -> object:
        with torch.inference_mode():
            return fast(prepare.normalise(pixels))

    return call, f"the call of {batch}"


def seconds_of(build: Remote, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        build()
        times.append(time.perf_counter() - began)
    return times


def choose_engine(model: str) -> str:
    """The engine that ``deepres serve`` chooses here for the network."""
    from deepres.engines import optimize
    from deepres.engines.registry import engines_for
    from deepres.models import open_model

    opened = open_model(model)
    usable = [engine.name for engine in engines_for("auto", torch.device("cpu")) if engine.any_batch]
    example = opened.preparation().example(8, torch.Generator().manual_seed(0))
    return str(optimize(opened.model, example, engine=usable, seconds=10.0).choice).split()[0]


def measure_turns(options: argparse.Namespace, found: list[Server], done: dict[str, Any], save: Any) -> None:
    """Ask every server in turns, and note each turn under ``NAME, CLIENTS, TURN``."""
    if "mean_ms_by_stage" in done:  # the last thing that is noted
        return
    files = photographs()
    forms = [as_form(file) for file in files]
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for server in found:
            sample = (forms if server.form else files)[0]
            log = options.folder / f"{server.name.replace(', ', '-')}.log"
            port = stack.enter_context(running(server, sample, log))
            if port is None:
                print(f"left out: {server.name} does not answer; see {log}", file=sys.stderr)
            else:
                ports[server.name] = port
        asked = [server for server in found if server.name in ports]
        kinds = {server.name: f"multipart/form-data; boundary={BOUNDARY}" if server.form else "image/jpeg" for server in found}
        for server in asked:
            load(ports[server.name], forms if server.form else files, CLIENTS[-1], 3.0, kinds[server.name])  # warm up
        for clients in CLIENTS:
            for turn in range(options.turns):
                for server in asked[:: 1 if turn % 2 else -1]:
                    key = f"{server.name}, {clients}, {turn}"
                    if key in done:
                        continue
                    port, bodies = ports[server.name], forms if server.form else files
                    before = breakdown(port) if server.name.startswith("deepres") else {}
                    answers, rate = load(port, bodies, clients, options.seconds, kinds[server.name])
                    after = breakdown(port) if before else {}
                    done[key] = {
                        "answers": len(answers),
                        "p50_ms": round(1000 * statistics.median(answers), 3),
                        "p99_ms": round(1000 * answers[int(0.99 * len(answers))], 3),
                        "answers_per_second": round(rate, 2),
                        **({"batch": round(_batch_between(before, after), 2)} if before else {}),
                    }
                    print(key, done[key], flush=True)
                    save()
        done["mean_ms_by_stage"] = {one.name: breakdown(ports[one.name]) for one in asked if one.name.startswith("deepres")}
        save()


def _batch_between(before: dict[str, float], after: dict[str, float]) -> float:
    calls = after["calls"] - before["calls"]
    return (after["images"] - before["images"]) / calls if calls else 0.0


def summarise(done: dict[str, Any], name: str, clients: int, turns: int) -> dict[str, Any] | None:
    rows = [done[key] for turn in range(turns) if (key := f"{name}, {clients}, {turn}") in done]
    if not rows:
        return None
    rates, medians = ([row[key] for row in rows] for key in ("answers_per_second", "p50_ms"))
    return {
        "n": len(rows),
        "answers": sum(row["answers"] for row in rows),
        "p50_ms": round(statistics.median(medians), 2),
        "p50_ms_lowest": min(medians),
        "p50_ms_highest": max(medians),
        "p99_ms": round(statistics.median(row["p99_ms"] for row in rows), 2),
        "answers_per_second": round(statistics.median(rates), 2),
        "lowest": min(rates),
        "highest": max(rates),
        **({"batch": round(statistics.mean(row["batch"] for row in rows), 1)} if "batch" in rows[0] else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-serving"))
    parser.add_argument("--environment", type=Path, default=cache_folder() / "rivals")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rivals = environment(options.environment)
    model, state = options.folder / f"{options.net}.safetensors", options.folder / f"{options.net}.json"
    if not model.exists():
        torch.manual_seed(0)
        deepres.save(deepres.create(options.net).eval(), model)
    done: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}

    def save() -> None:
        part = state.with_suffix(".part")
        part.write_text(json.dumps(done, indent=1))
        os.replace(part, state)

    engine = done.setdefault("engine", choose_engine(str(model)))
    save()
    found = servers(str(model), engine, rivals)
    measure_turns(options, found, done, save)
    load_table = {
        f"{server.name}, {clients} client{'s' if clients > 1 else ''}": row
        for clients in CLIENTS
        for server in found
        if (row := summarise(done, server.name, clients, options.turns)) is not None
    }
    batch = max(1, round(load_table["deepres, 32 clients"]["batch"]))
    alone: dict[str, Any] = {}
    for name, size, decode in (("decoding and the call of one", 1, True), ("engine at the batch of 32 clients", batch, False)):
        candidate = Remote(direct, str(model), engine, size, decode)
        seconds_of(candidate, 5)
        times = seconds_of(candidate, 40)
        candidate.close()
        alone[name] = {
            "n": len(times),
            "batch": size,
            "ms": round(1000 * statistics.median(times), 3),
            "ms_lowest": round(1000 * min(times), 3),
            "ms_highest": round(1000 * max(times), 3),
        }
    engine_rate = 1000 * batch / alone["engine at the batch of 32 clients"]["ms"]
    ours = load_table["deepres, 32 clients"]["answers_per_second"]
    one_client = load_table["deepres, 1 client"]["p50_ms"] / alone["decoding and the call of one"]["ms"]
    versions = {name: _version(rivals, name) for name in RIVALS} if rivals else {}
    versions |= {name: importlib.metadata.version(name) for name in ("fastapi", "uvicorn")}
    about = {
        "what": f"{options.net} with random weights on photographs of 500x375 as JPEG, over HTTP on loopback",
        "turns": options.turns,
        "seconds": options.seconds,
        "engine": engine,
        "versions": versions,
        "one_client_against_decoding_and_call": round(one_client, 3),
        "share_of_engine_at_32_clients": round(ours / engine_rate, 3),
    }
    record(NAME, {**about, "load": load_table, "alone": alone, "mean_ms_by_stage": done["mean_ms_by_stage"]})


def _version(python: str | None, name: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
