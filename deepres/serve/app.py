"""The HTTP service: POST /predict, GET /health, /metrics and /openapi.json."""

from __future__ import annotations

import asyncio
import io
import signal
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepres.errors import DeepresError

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Query, Request, Response
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from pydantic import BaseModel, Field
except ImportError as error:
    raise DeepresError(f"deepres serve needs {error.name}, which is not here; pip install 'deepres[serve]'") from error

from deepres import __version__
from deepres.data import Prepare, UnreadableImage, open_image
from deepres.serve.batcher import Batcher, Full, Limits, Metrics
from deepres.serve.worker import Spec, Worker

if TYPE_CHECKING:
    from PIL.Image import Image

GRACE = 30  # seconds to finish what was accepted
DRAIN = 8  # times the largest body that is read of one which is refused


class Class(BaseModel):
    """One of the likeliest classes."""

    name: str
    probability: float


class Prediction(BaseModel):
    """The answer for one image."""

    classes: list[Class]
    depth: float = Field(description="share of the network's blocks that ran; 1 without a ghost")
    level: int = Field(description="steps by which the ghost was tightened under load")


class Health(BaseModel):
    status: str
    model: str
    blocks: int = Field(description="blocks of the ghost; 0 for a network that is none")


def build_app(worker: Worker, limits: Limits, *, tighten: bool = False) -> FastAPI:
    """The service around a worker, which it stops in the end."""
    metrics = Metrics()
    prepare = Prepare.from_notes(worker.facts.prepare)
    batcher: Batcher | None = None

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(worker, limits, metrics, tighten=tighten)
        batcher.start()
        yield
        await batcher.close()

    app = FastAPI(title=f"deepres: {worker.facts.name}", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    refusals: dict[int | str, dict[str, Any]] = {
        413: {"description": "the body or the image is too large"},
        415: {"description": "not an image that can be read"},
        503: {"description": "too many images wait; try again"},
        504: {"description": "no answer in time"},
    }
    raw = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}

    @app.post("/predict", responses=refusals, openapi_extra=raw)
    async def predict(request: Request, top: int = Query(5, ge=1, le=1000)) -> Prediction:
        """Classify the image that is the request's body."""
        began = time.perf_counter()
        status = 500
        try:
            assert batcher is not None
            body = await _body(request, limits.body)
            image = await asyncio.to_thread(_decode, body, prepare, limits.pixels)
            answer = await batcher.answer(image)
            status = 200
        except HTTPException as error:
            status = error.status_code
            raise
        except Full:
            status = 503
            raise HTTPException(503, "too many images wait; try again", {"Retry-After": "1"}) from None
        except TimeoutError:
            status = 504
            raise HTTPException(504, f"no answer within {limits.timeout:g} s") from None
        except asyncio.CancelledError:
            status = 499  # hung up
            raise
        finally:
            metrics.requests.labels(str(status)).inc()
            metrics.seconds.observe(time.perf_counter() - began)
        likeliest = np.argsort(-answer.probabilities)[:top]
        classes = worker.facts.classes
        named = [Class(name=classes[i] if i < len(classes) else str(i), probability=answer.probabilities[i]) for i in likeliest]
        return Prediction(classes=named, depth=answer.depth, level=answer.level)

    @app.get("/health", responses={503: {"description": "the network is being loaded again"}})
    async def health(response: Response) -> Health:
        """Whether images are answered."""
        well = batcher is not None and batcher.ready and worker.alive
        response.status_code = 200 if well else 503
        return Health(status="ok" if well else "loading", model=worker.facts.name, blocks=worker.facts.blocks)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _body(request: Request, most: int) -> bytes:
    """Of the request. Of one that is too large a while is read on, kept nowhere: few clients read an answer while they still send."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > DRAIN * most:
            break
    if size > most:
        raise HTTPException(413, f"the body is too large; at most {most:,} bytes are taken")
    if not size:
        raise HTTPException(415, "the body is empty; send an image file as it is")
    return b"".join(parts)


def _decode(body: bytes, prepare: Prepare, most: int) -> np.ndarray:
    """uint8 (C, H, W). The image's size is read, and refused, before its pixels are unpacked."""
    width, height = _size(body)
    if width * height > most:
        raise HTTPException(413, f"the image has {width:,} x {height:,} pixels; at most {most:,} are taken")
    try:
        opened: Image = open_image(body, prepare.channels)
    except UnreadableImage as error:
        raise HTTPException(415, str(error)) from None
    return prepare.image(opened).numpy()


def _size(body: bytes) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(body)) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the image would unpack to too many pixels ({error})") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        raise HTTPException(415, "not an image that can be read; send an image file as it is") from None


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    tighten: bool = False,
    weights: str | Path | None = None,
    device: str = "auto",
) -> int:
    """Serve until SIGINT or SIGTERM, after which accepted requests are finished. Gives the exit code.

    Raises ``DeepresError`` for a network that cannot be loaded and a port that cannot be had.
    """
    import socket

    for name, least in (("batch", 1), ("queue", 1), ("body", 1), ("pixels", 1)):
        if getattr(limits, name) < least:
            raise DeepresError(f"--{name} is at least {least}, not {getattr(limits, name)}")
    if limits.timeout <= 0 or limits.wait < 0:
        raise DeepresError("--timeout is above 0 and --wait at least 0")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise DeepresError(f"--host {host} --port {port}: cannot be had ({error}); choose another") from error
    try:
        worker = Worker(Spec(str(model), str(weights) if weights is not None else None, device))
    except BaseException:
        listening.close()
        raise
    config = uvicorn.Config(
        build_app(worker, limits, tighten=tighten), log_level="warning", timeout_graceful_shutdown=GRACE, access_log=False
    )
    address = listening.getsockname()
    print(
        f"deepres serves {worker.facts.name} on http://{host}:{address[1]}: /predict /health /metrics /openapi.json", flush=True
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal that stopped it once more when it is done, which shall end nothing by then
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if worker.alive:
            worker.stop()
    print("deepres: stopped; what was accepted is answered", flush=True)
    return 0
