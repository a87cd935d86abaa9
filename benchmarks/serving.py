"""``deepres serve`` beside LitServe and BentoML: the same network, the same images, one client and 32.

    python -m benchmarks.serving [--net resnet50] [--environment FOLDER]
    python -m benchmarks.serving --net efficientnet-lite0 --pretrained

Clients send photographs as they are, or resized to the network's input, so that a server's own work is seen apart from decoding.

The servers run at the same time and are asked in turns; the clients share the machine with them. ``deepres`` and the tuned rivals run
the network on the engine that ``deepres serve`` chooses, and batch up to 32 images; ``deepres, PyTorch`` and the plain rivals run it in
PyTorch. Beside them stand decoding plus the call alone, what the engine gives for the same photographs at the batch size that 32 clients
lead to (close calls are computed again there as in the server, and noise has other close calls), and the most that decoding on the same
cores leaves of it. Each turn records the processor time of an answer, in the
server and in the clients, and of ours the mean time of each stage.

LitServe and BentoML are installed into a virtual environment of their own, ``--environment``, which shares this one's PyTorch. A turn is
written to ``--folder`` when it is done, and turns that are there are skipped, so that the run can be interrupted. The result is
``benchmarks/results/serving-rivals.json``, of other networks with their name behind it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import deepres
from benchmarks.common import Remote, record
from benchmarks.serving_ghost import CLIENTS, load, stage_means, stage_totals
from benchmarks.serving_rivals import load as load_classifier
from benchmarks.serving_servers import BOUNDARY, RIVALS, Running, Server, environment, running, servers
from deepres.data import Prepare, open_image
from deepres.engines import optimize
from deepres.engines.answers import close_calls
from deepres.engines.registry import engines_for
from deepres.models import open_model
from deepres.paths import cache_folder

NAME = "serving-rivals"
BODIES = {"photographs": "", "resized": ", resized"}  # -> what a row's name ends in


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


def resized(file: bytes, prepare: Prepare) -> bytes:
    """The image as a client sends it that resizes: a JPEG of the network's input size."""
    buffer = io.BytesIO()
    prepare.fitted(Image.open(io.BytesIO(file)).convert("RGB")).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def as_form(image: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def direct(model: str, engine: str, batch: int, decode: bool) -> tuple[Any, str]:
    """The call of the network on ``engine``, in a process of its own: with decoding of one photograph, or of a prepared batch alone."""
    from benchmarks import serving_rivals

    os.environ[serving_rivals.MODEL], os.environ[serving_rivals.ENGINE] = model, engine
    if decode:
        classify, _ = load_classifier()
        file = photographs()[0]
        return lambda: classify([Image.open(io.BytesIO(file))]), "decoding and the call"
    fast, prepare = optimized(model, engine)
    pixels = torch.stack([prepare.image(Image.open(io.BytesIO(file)).convert("RGB")) for file in photographs()[:batch]])

    def call() -> object:
        with torch.inference_mode():
            return fast(prepare.normalise(pixels))

    return call, f"the call of {batch}"


def optimized(model: str, engine: str) -> tuple[Any, Prepare]:
    """(the network on the engine, as ``deepres serve`` builds it, its preparation)."""
    opened = open_model(model)
    prepare = opened.preparation()
    example = prepare.example(8, torch.Generator().manual_seed(0))
    return optimize(opened.model.eval(), example, engine=engine, seconds=10.0), prepare


def close_share(model: str, engine: str) -> float:
    """Share of the photographs that the engine computes again in float32."""
    fast, prepare = optimized(model, engine)
    if fast.exact is None:
        return 0.0
    pixels = torch.stack([prepare.image(Image.open(io.BytesIO(file)).convert("RGB")) for file in photographs()])
    with torch.inference_mode():
        x = prepare.normalise(pixels)
        fast(x)  # measures the margin, where it is not known
        return len(close_calls(fast.runner(x), fast.margin)) / len(pixels)


def decoding_seconds(prepare: Prepare) -> float:
    """Processor time of decoding and preparing a photograph, the median of all."""
    times = []
    for file in photographs():
        began = time.thread_time()
        prepare.image(open_image(file, prepare.channels))
        times.append(time.thread_time() - began)
    return statistics.median(times)


def seconds_of(build: Remote, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        build()
        times.append(time.perf_counter() - began)
    return times


def choose_engine(model: str) -> str:
    """The engine that ``deepres serve`` chooses here for the network."""
    opened = open_model(model)
    usable = [engine.name for engine in engines_for("auto", torch.device("cpu")) if engine.any_batch]
    example = opened.preparation().example(8, torch.Generator().manual_seed(0))
    return str(optimize(opened.model, example, engine=usable, seconds=10.0).choice).split()[0]


def measure_turns(options: argparse.Namespace, model: str, found: list[Server], done: dict[str, Any], save: Any) -> None:
    """Ask every server in turns, and note each turn under its row's name and number."""
    if "complete" in done:
        return
    whole = photographs()
    prepare = open_model(model).preparation()
    plain = {"photographs": whole, "resized": [resized(file, prepare) for file in whole]}
    forms = {kind: [as_form(file) for file in files] for kind, files in plain.items()}
    with ExitStack() as stack:
        up: dict[str, Running] = {}
        for server in found:
            sample = (forms if server.form else plain)["photographs"][0]
            log = options.folder / f"{server.name.replace(', ', '-')}.log"
            one = stack.enter_context(running(server, sample, log))
            if one is None:
                print(f"left out: {server.name} does not answer; see {log}", file=sys.stderr)
            else:
                up[server.name] = one
        asked = [server for server in found if server.name in up]
        for server in asked:
            _turn(up[server.name], server, (forms if server.form else plain)["photographs"], CLIENTS[-1], 3.0)  # warm up
        for kind, clients, turn in itertools.product(BODIES, CLIENTS, range(options.turns)):
            for server in asked[:: 1 if turn % 2 else -1]:
                key = f"{row_name(server.name, clients, kind)}, {turn}"
                if key not in done:
                    bodies = (forms if server.form else plain)[kind]
                    done[key] = _turn(up[server.name], server, bodies, clients, options.seconds)
                    print(key, done[key], flush=True)
                    save()
        done["complete"] = True
        save()


def row_name(server: str, clients: int, kind: str) -> str:
    return f"{server}, {clients} client{'s' if clients > 1 else ''}{BODIES[kind]}"


def _turn(up: Running, server: Server, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    ours = server.name.startswith("deepres")
    kind = f"multipart/form-data; boundary={BOUNDARY}" if server.form else "image/jpeg"
    before, spent = stage_totals(up.port) if ours else {}, up.core_seconds()
    answers, rate = load(up.port, bodies, clients, seconds, kind)
    cores, after = up.core_seconds(), stage_totals(up.port) if ours else {}
    return {
        "answers": len(answers),
        "p50_ms": round(1000 * statistics.median(answers), 3),
        "p99_ms": round(1000 * answers[int(0.99 * len(answers))], 3),
        "answers_per_second": round(rate, 2),
        "core_ms": {name: round(1000 * (cores[name] - spent[name]) / len(answers), 3) for name in cores},
        **({"mean_ms": stage_means(after, before)} if ours else {}),
    }


def summarise(done: dict[str, Any], name: str, turns: int) -> dict[str, Any] | None:
    rows = [done[key] for turn in range(turns) if (key := f"{name}, {turn}") in done]
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
        **{what: _medians([row[what] for row in rows]) for what in ("core_ms", "mean_ms") if what in rows[0]},
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def alone(model: str, engine: str, batch: int) -> dict[str, Any]:
    """Decoding and the call of one photograph, and the call of ``batch`` photographs that are decoded already, without a server."""
    found: dict[str, Any] = {}
    for name, size, decode in (("decoding and the call of one", 1, True), ("engine at the batch of 32 clients", batch, False)):
        candidate = Remote(direct, model, engine, size, decode)
        seconds_of(candidate, 5)
        times = seconds_of(candidate, 40)
        candidate.close()
        found[name] = {
            "n": len(times),
            "batch": size,
            "ms": round(1000 * statistics.median(times), 3),
            "ms_lowest": round(1000 * min(times), 3),
            "ms_highest": round(1000 * max(times), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--pretrained", action="store_true", help="serve the network's pretrained weights, not random ones")
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
        deepres.save(deepres.create(options.net, pretrained=options.pretrained).eval(), model)
    done: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}

    def save() -> None:
        part = state.with_suffix(".part")
        part.write_text(json.dumps(done, indent=1))
        os.replace(part, state)

    engine = done.setdefault("engine", choose_engine(str(model)))
    save()
    found = servers(str(model), engine, rivals)
    measure_turns(options, str(model), found, done, save)
    named = [row_name(server.name, clients, kind) for kind in BODIES for clients in CLIENTS for server in found]
    load_table = {name: row for name in named if (row := summarise(done, name, options.turns)) is not None}
    lone = alone(str(model), engine, max(1, round(load_table["deepres, 32 clients"]["mean_ms"]["batch"])))
    versions = {name: _version(rivals, name) for name in RIVALS} if rivals else {}
    versions |= {name: importlib.metadata.version(name) for name in ("fastapi", "uvicorn")}
    about = {
        "what": f"{options.net} with {'pretrained' if options.pretrained else 'random'} weights on photographs of 500x375 as JPEG, over "
        "HTTP on loopback",
        "turns": options.turns,
        "seconds": options.seconds,
        "engine": engine,
        "versions": versions,
        "close_calls": round(close_share(str(model), engine), 3),
        **shares(load_table, lone, decoding_seconds(open_model(model).preparation())),
    }
    name = NAME if options.net == "resnet50" else f"{NAME}-{options.net}"
    record(name, {**about, "load": load_table, "alone": lone})


def shares(load_table: dict[str, Any], lone: dict[str, Any], decoding: float) -> dict[str, float]:
    """What the targets are about: one client's time, and the answers to 32, as shares of what is there without a server.

    ``decoding``: processor time of a photograph, which its own core spends while the engine takes all of them.
    """
    engine = lone["engine at the batch of 32 clients"]
    call = engine["ms"] / 1000 / engine["batch"]
    ceiling = call / (call + decoding / torch.get_num_threads())
    found = {
        "one_client_against_decoding_and_call": load_table["deepres, 1 client"]["p50_ms"]
        / lone["decoding and the call of one"]["ms"],
        "decoding_core_ms": 1000 * decoding,
        "ceiling_with_decoding": ceiling,
    }
    for kind, ending in BODIES.items():
        rate = load_table[row_name("deepres", 32, kind)]["answers_per_second"]
        found[f"share_of_engine_at_32_clients{ending.replace(', ', '_')}"] = rate * call
    return {name: round(value, 3) for name, value in found.items()}


def _version(python: str | None, name: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
