"""``serve``: listen, answer, and stop without losing what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from deepres.detection import is_detector
from deepres.errors import DeepresError
from deepres.models import open_language_model, vocabulary_of
from deepres.serve.app import build_app
from deepres.serve.completions import build_completions
from deepres.serve.limits import Limits
from deepres.serve.options import ServeOptions
from deepres.serve.spec import Facts, Spec
from deepres.serve.worker import Worker
from deepres.training.distribute import pick_device

BACKLOG = 2048  # connections that wait to be accepted; uvicorn's own number
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def serve(
    model: str | Path,
    *,
    host: str = ServeOptions.host,
    port: int = ServeOptions.port,
    limits: Limits = ServeOptions.limits,
    tighten: bool = ServeOptions.tighten,
    weights: str | Path | None = ServeOptions.weights,
    engine: str = ServeOptions.engine,
    device: str = ServeOptions.device,
    data: str | None = ServeOptions.data,
) -> int:
    """Serve a network over HTTP until SIGINT or SIGTERM. Returns the exit code, 0.

    On the signal, requests whose body has not arrived are refused at once, and the others are answered.

    ``model``: as in ``open_model``, a ghost's folder, or a detector's run or file, whose answers are boxes. A language model answers
    OpenAI's completions route instead of images, in this process. ``ServeOptions`` explains the options.

    Raises ``DeepresError`` for a network that cannot be loaded, a port that cannot be had, and options that the network has no use for.
    """
    spec = Spec(str(model), str(weights) if weights is not None else None, device, engine, limits.batch, tighten, data)
    listening = listen(host, port)
    try:
        if vocabulary_of(weights or model) is not None:
            spec.need_pytorch("a language model")
            language = open_language_model(model, weights=weights)
            language.model.to(pick_device(device))
            _run(
                build_completions(language, limits),
                limits,
                listening,
                host,
                f"{language.name} on {{}}: /v1/completions /v1/models",
                f"{language.name} runs in PyTorch",
            )
            return 0
        worker, build = _service(spec)
    except BaseException:
        listening.close()
        raise
    try:
        _run(build(worker, limits), limits, listening, host, f"{worker.facts.name} on {{}}: /predict", _running(worker.facts))
    finally:
        if worker.alive:
            worker.stop()
    return 0


def _service(spec: Spec) -> tuple[Worker, Callable[[Any, Limits], FastAPI]]:
    """The process that holds the network, started, and what builds the service around it."""
    if not is_detector(spec.reference):
        return Worker(spec), partial(build_app, tighten=spec.tighten)
    from deepres.serve.detections import build_detections
    from deepres.serve.detector_worker import DetectorWorker

    return DetectorWorker(spec), build_detections


def _run(app: FastAPI, limits: Limits, listening: socket.socket, host: str, what: str, more: str = "") -> None:
    """Answer requests until a signal. ``what`` is printed with the address in it, and ``more`` in a line of its own."""
    config = uvicorn.Config(
        app,
        http=_protocol(limits.timeout),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=math.ceil(limits.timeout) + 2,  # by then every request has met its own deadline
    )
    place = f"[{host}]" if ":" in host else host
    address = f"http://{place}:{listening.getsockname()[1]}"
    listening.listen(BACKLOG)  # so that whoever reads the line can connect
    print(f"deepres serves {what.format(address)} /health /metrics /openapi.json", flush=True)
    if more:
        print(f"deepres: {more}", flush=True)
    # uvicorn raises the signal that stopped it once more when it is done; by then it must not end the process
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    server = StoppingServer(config, app)
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"deepres: stopped; {server.outcome()}", flush=True)


def _running(facts: Facts) -> str:
    """Where the network runs and, of a ghost in PyTorch, why."""
    if facts.engine != "none":
        return f"{facts.name} runs on {facts.engine}"
    return f"{facts.name} runs in PyTorch" + (f": {facts.why_not}" if facts.why_not else "")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket that asyncio's servers take. Raises ``DeepresError`` where the port cannot be had."""
    # asyncio switches Nagle's algorithm off where the protocol says TCP; with it, an answer's body waits for its head's acknowledgement
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise DeepresError(f"--host {host} --port {port}: cannot be had ({error}); choose another") from error
    return listening


class StoppingServer(uvicorn.Server):
    """A server that, when it stops, refuses bodies still on their way, waits for the requests under way, and counts those it cuts off."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app
        self.cut_off = 0  # requests that were not answered when the time to stop was over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.receiver.close()
        limit = self.config.timeout_graceful_shutdown
        assert limit is not None
        # uvicorn starts its own clock a tenth of a second later, and then cancels what still runs
        counting = asyncio.get_running_loop().call_later(limit, self._count)
        await super().shutdown(sockets)
        counting.cancel()

    def _count(self) -> None:
        self.cut_off = len(self.server_state.tasks)

    def outcome(self) -> str:
        """Say, as a clause, whether the accepted requests were answered."""
        if not self.cut_off:
            return "every accepted request was answered"
        requests = "1 request was" if self.cut_off == 1 else f"{self.cut_off} requests were"
        return f"{requests} cut off after {self.config.timeout_graceful_shutdown} seconds"


def _acknowledge(transport: Any) -> None:
    """Acknowledge what was received now, and not up to 40 ms later.

    A client that writes head and body apart, as Python's own do, sends the body when the head is acknowledged (RFC 896), and Linux delays
    acknowledgements on a connection that has answered. Each answer undoes the setting.
    """
    if hasattr(socket, "TCP_QUICKACK") and (connection := transport.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _protocol(seconds: float) -> type[Any]:
    """uvicorn's HTTP protocol with a deadline for a request's head, of which it has none: a connection is closed where no whole head
    has arrived within ``seconds``. What arrives is acknowledged at once."""

    class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        head_deadline: asyncio.TimerHandle | None = None
        begun = False  # whether a part of a head has arrived

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            _acknowledge(self.transport)
            if self.cycle is None or self.cycle.response_complete:
                self.begun = True
                self._await_head()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._got_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._got_head()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self.head_deadline is None:
                self.head_deadline = self.loop.call_later(seconds, self._give_up)

        def _got_head(self) -> None:
            self.begun = False
            if self.head_deadline is not None:
                self.head_deadline.cancel()
                self.head_deadline = None

        def _give_up(self) -> None:
            if self.begun:  # else there is no request that an answer could belong to
                self.transport.write(LATE)
            self.transport.close()

    return Protocol
