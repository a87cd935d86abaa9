"""A server in a process of its own, asked over loopback: answers, refusals, metrics, a killed worker, a clean end."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import Server, png, start, wait_until
from sklearn.datasets import load_digits

import deepres
from deepres.cli.main import main
from deepres.data import open_data


def test_the_answer_is_the_networks(server: Server, model: Path) -> None:
    digits = load_digits().images[:3]
    net, data = deepres.load_ghost(model)[0], open_data("digits")
    for image in digits:
        pixels = (image * 15.9).astype(np.uint8)
        status, body = server.ask("/predict?top=10", png(pixels))
        assert status == 200
        answer = json.loads(body)
        with torch.no_grad():
            expected = net(data.prepare.normalise(torch.from_numpy(pixels)[None, None])).softmax(1)[0]
        found = {one["name"]: one["probability"] for one in answer["classes"]}
        assert [found[str(k)] for k in range(10)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["depth"] == 1 and answer["level"] == 0


def test_what_is_refused(server: Server) -> None:
    image = png(np.zeros((8, 8), np.uint8))
    wide = png(Image.new("1", (2000, 1000)))  # a few hundred bytes
    bomb = png(Image.new("1", (14000, 14000)))
    for path, body, status, says in (
        ("/predict", b"no image", 415, "not an image"),
        ("/predict", image[: len(image) // 2], 415, "not an image"),
        ("/predict", b"", 415, "the body is empty"),
        ("/predict", bytes(600_000), 413, "at most 500,000 bytes"),
        ("/predict", wide, 413, "2,000 x 1,000 pixels"),
        ("/predict", bomb, 413, "too many pixels"),
        ("/predict?top=0", image, 422, "greater than or equal to 1"),
        ("/predict", None, 405, "Method Not Allowed"),
        ("/nowhere", None, 404, "Not Found"),
    ):
        found, text = server.ask(path, body)
        assert found == status and says in text, (path, found, text)


def test_a_body_without_a_length_is_bounded_too(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        reply = b""
        wire.settimeout(20)
        try:
            for _ in range(80):  # more than the eight times that are read of what is refused
                wire.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        except OSError:  # it hung up, as it may
            pass
        reply = wire.recv(4096)
    assert b" 413 " in reply


def test_cut_connections_do_no_harm(server: Server) -> None:
    image = png(np.zeros((8, 8), np.uint8))
    for part in (
        b"",
        b"POST /predict HTTP/1.1\r\nContent-Le",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\nabc",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(part)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(head + image)  # and away
    assert server.ask("/predict", image)[0] == 200


def test_many_at_once_are_answered_in_batches(server: Server) -> None:
    image = png(np.zeros((8, 8), np.uint8))
    before = server.metric("deepres_batch_images_count"), server.metric("deepres_batch_images_sum")
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: server.ask("/predict", image)[0], range(64)))
    assert statuses == [200] * 64
    calls, images = (
        server.metric(f"deepres_batch_images_{what}") - old for what, old in zip(("count", "sum"), before, strict=True)
    )
    assert images == 64 and calls < 64


def test_a_killed_worker_comes_back(server: Server) -> None:
    image = png(np.zeros((8, 8), np.uint8))
    before = server.metric("deepres_worker_restarts_total")
    server.worker().kill()
    assert server.ask("/predict", image)[0] == 200  # waits for the next one
    server.worker().kill()  # and with nobody asking
    for _ in range(200):
        time.sleep(0.2)
        if server.metric("deepres_worker_restarts_total") == before + 2 and server.ask("/health")[0] == 200:
            break
    assert server.ask("/health")[0] == 200 and server.metric("deepres_worker_restarts_total") == before + 2


def test_the_service_describes_itself(server: Server) -> None:
    spec = json.loads(server.ask("/openapi.json")[1])
    assert set(spec["paths"]) == {"/predict", "/health", "/metrics"}
    assert {"200", "413", "415", "422", "503", "504"} <= set(spec["paths"]["/predict"]["post"]["responses"])
    assert spec["components"]["schemas"]["Prediction"]["properties"]["depth"]["description"]
    for name in ("deepres_request_seconds_count", "deepres_waiting_images", "deepres_ghost_level", "deepres_depth_count"):
        assert server.metric(name) >= 0


def test_under_load_it_refuses_tightens_and_ends_cleanly(model: Path) -> None:
    server = start(model, "--batch", "1", "--queue", "4", "--wait", "0", "--tighten")
    image = png((load_digits().images[0] * 15.9).astype(np.uint8))
    broken = image[:40]  # an image by its first bytes, which cannot be decoded
    try:
        os.kill(server.worker().pid, signal.SIGSTOP)  # the network hangs, so that images queue up
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(server.ask, "/predict", image)]
            wait_until(lambda: server.metric("deepres_batch_images_count") == 1)  # under way
            asked += [pool.submit(server.ask, "/predict", image) for _ in range(4)]
            wait_until(lambda: server.metric("deepres_waiting_images") == 4)
            for body in (image, broken):  # refused before it is decoded, else the answer were 415
                assert server.ask("/predict", body) == (503, '{"detail":"the request queue is full; try again"}')
            assert server.ask("/health")[0] == 200  # HTTP goes on
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            os.kill(server.worker().pid, signal.SIGCONT)
            replies = [one.result() for one in asked]
        assert [status for status, _ in replies] == [200] * 5  # what was accepted is answered
        levels = [json.loads(body)["level"] for _, body in replies]
        assert max(levels) == 1 and min(levels) == 0
        out, err = server.process.communicate(timeout=30)
        assert server.process.returncode == 0 and "every accepted request was answered" in out and not err
    finally:
        server.process.kill()
        server.process.communicate()


def test_bad_options_get_a_sentence(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, says in (
            ([str(model), "--port", str(port)], "cannot be had"),
            ([str(model), "--port", "99999"], "cannot be had"),
            ([str(model), "--port", "0", "--batch", "0"], "batch is at least 1"),
            ([str(model), "--port", "0", "--timeout", "0"], "timeout is above 0"),
            ([str(tmp_path / "nothing"), "--port", "0"], "nothing"),
        ):
            assert main(["serve", *options]) == 2
            error = capsys.readouterr().err
            assert says in error and "Traceback" not in error
