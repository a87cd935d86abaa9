"""What a server does with slow clients, hung networks, odd images and a signal in the midst of it."""

import asyncio
import io
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from running import Server, png, start, wait_until

import deepres
from deepres.data import Prepare
from deepres.serve.server import StoppingServer, listen

DIGIT = png(np.zeros((8, 8), np.uint8))
HALF = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\nabc"


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def raw(server: Server, sent: bytes) -> bytes:
    """The whole answer to bytes on a connection, until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as wire:
        wire.sendall(sent)
        reply = b""
        while part := wire.recv(65536):
            reply += part
        return reply


def test_a_hung_network_is_unhealthy_killed_and_loaded_again(model: Path) -> None:
    server = start(model, "--engine", "none", "--call-timeout", "1")
    try:
        first = server.worker()
        os.kill(first.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "/predict", DIGIT)
            wait_until(lambda: server.ask("/health")[0] == 503)
            status, text = asked.result()
        assert status == 503 and "did not answer" in text
        assert server.ask("/predict", DIGIT)[0] == 200
        assert server.worker().pid != first.pid and server.ask("/health")[0] == 200
        assert server.metric("deepres_worker_restarts_total") == 1
        os.kill(server.worker().pid, signal.SIGSTOP)  # and a signal while it hangs does not wait for ever
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "/predict", DIGIT)
            wait_until(lambda: server.metric("deepres_batch_images_count") == 3)
            server.process.send_signal(signal.SIGTERM)
            assert asked.result()[0] == 503
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 0 and not err
    finally:
        server.process.kill()
        server.process.communicate()


def test_half_a_request_is_ended_by_the_timeout_and_by_a_signal(model: Path) -> None:
    server = start(model, "--engine", "none", "--timeout", "1.5")
    try:
        with ThreadPoolExecutor(3) as pool:
            began = time.monotonic()
            replies = list(pool.map(lambda sent: raw(server, sent), (HALF, b"POST /predict HTT", b"")))
            assert 1 < time.monotonic() - began < 15
        assert b" 408 " in replies[0] and b"did not arrive within 1.5 s" in replies[0]
        assert b" 408 " in replies[1] and replies[2] == b""
        assert server.ask("/predict", DIGIT)[0] == 200
    finally:
        server.process.kill()
        server.process.communicate()
    server = start(model, "--engine", "none", "--timeout", "60")
    try:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(raw, server, sent) for sent in (HALF, b"POST /predict HTT")]
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, err = server.process.communicate(timeout=60)
            assert time.monotonic() - began < 20  # not the timeout
            assert b" 503 " in waiting[0].result() and b"stopping" in waiting[0].result()
            assert waiting[1].result() == b""
        assert server.process.returncode == 0 and not err
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_served_formats_are_read_and_damaged_ones_refused(server: Server, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    whole = encoded(image, kind)
    assert server.ask("/predict", whole)[0] == 200
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    for body in (whole[: len(whole) // 2], bytes(damaged), whole[:30]):
        assert server.ask("/predict", body)[0] in (200, 415)  # some decoders fill in what is missing
    assert server.ask("/predict", whole[:30])[0] == 415


@pytest.mark.parametrize("kind", ["PCX", "TGA", "ICO", "EPS", "DDS", "SGI"])
def test_other_formats_are_refused(server: Server, kind: str) -> None:
    status, text = server.ask("/predict", encoded(Image.new("RGB", (32, 32)), kind))
    assert status == 415 and "JPEG" in text


def test_thin_images_cost_no_memory_in_a_network_for_224_pixels(tmp_path: Path) -> None:
    """Resized as a whole, the short side to 256 pixels, an image of 1 x 10,000 pixels would take 1.9 GiB."""
    net = deepres.create("resnet8-cifar", num_classes=3, width=0.25)
    prepare = Prepare.usual(224).to_notes()
    path = deepres.save(net, tmp_path / "net.safetensors", classes=["a", "b", "c"], prepare=prepare)
    server = start(path, "--engine", "none", "--pixels", "1")

    def peak() -> int:
        lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    try:
        assert server.ask("/predict", png(Image.new("RGB", (300, 200))))[0] == 200
        before = peak()
        for size in ((1, 10_000), (10_000, 1), (1, 60_000), (999, 1000)):
            assert server.ask("/predict", png(Image.new("RGB", size)))[0] == 200
        assert peak() - before < 64 << 20
        assert server.ask("/predict", png(Image.new("1", (1000, 1001))))[0] == 413
    finally:
        server.process.kill()
        server.process.communicate()


def test_methods(server: Server) -> None:
    def asked(method: str, path: str) -> tuple[bytes, bytes]:
        head, _, body = raw(server, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()).partition(
            b"\r\n\r\n"
        )
        return head.lower(), body

    for path, allowed in {
        "/predict": b"post, options",
        "/health": b"get, head, options",
        "/metrics": b"get, head, options",
    }.items():
        head, body = asked("OPTIONS", path)
        assert b" 204 " in head and b"allow: " + allowed in head and not body
        head, _ = asked("DELETE", path)
        assert b" 405 " in head and b"allow: " + allowed in head
    for path in ("/health", "/metrics", "/openapi.json"):
        head, body = asked("HEAD", path)
        assert b" 200 " in head and b"content-length: " in head and not body
        assert b"content-type: " in head
    head, body = asked("HEAD", "/predict")
    assert b" 405 " in head and not body
    assert b" 204 " in asked("OPTIONS", "*")[0] and b" 404 " in asked("OPTIONS", "/nowhere")[0]
    assert json.loads(server.ask("/health")[1])["status"] == "ok"


def test_an_answer_is_sent_in_parts_without_waiting_for_acknowledgements() -> None:
    """asyncio leaves Nagle's algorithm on where a socket does not name its protocol, and each answer then takes 40 ms more."""

    class Waits(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connection = transport.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def connect() -> int:
        nonlocal found
        found = asyncio.get_running_loop().create_future()
        async with await asyncio.get_running_loop().create_server(Waits, sock=listen("127.0.0.1", 0)) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            delay = await found
            writer.close()
            return delay

    found: asyncio.Future[int]
    assert asyncio.run(connect())


@pytest.mark.parametrize(
    ("seconds", "outcome"), [(0.5, "every accepted request was answered"), (60, "1 request was cut off after 2 seconds")]
)
def test_a_request_that_is_cut_off_is_told(seconds: float, outcome: str) -> None:
    """Stopped while an answer takes less, or more, than the time to stop."""
    app = FastAPI()
    app.state.receiver = SimpleNamespace(close=lambda: None)
    began = threading.Event()

    @app.get("/slow")
    async def slow() -> None:
        began.set()
        await asyncio.sleep(seconds)

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as pool:
        stopping = StoppingServer(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2), app)
        running = pool.submit(stopping.run, [listening])
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
            wire.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert began.wait(30)
            stopping.should_exit = True
            running.result(30)
    assert stopping.outcome() == outcome
