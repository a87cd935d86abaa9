"""The HTTP service: POST /predict, GET /health, /metrics and /openapi.json."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from deepres import __version__
from deepres.data import Prepare
from deepres.errors import DeepresError
from deepres.serve.batcher import Batcher, QueueFull
from deepres.serve.limits import Limits
from deepres.serve.methods import Methods
from deepres.serve.metrics import Metrics
from deepres.serve.receiving import Receiver
from deepres.serve.worker import Worker, WorkerDied, WorkerHung

HUNG_UP = 499  # the status, for the metrics alone, of a request whose client left before it was answered


class Class(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Prediction(BaseModel):
    """The answer for one image."""

    classes: list[Class] = Field(description="the likeliest classes, the likeliest first")
    depth: float = Field(description="share of the network's blocks that ran; 1 without a ghost")
    level: int = Field(description="steps by which the ghost was tightened under load")


class Health(BaseModel):
    """Health of the server: whether the network answers."""

    status: str
    model: str
    blocks: int = Field(description="blocks of the ghost; 0 for any other network")


REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body or the image is too large."},
    415: {"description": "The body is not an image that can be read."},
    503: {"description": "The request queue is full, the network is being restarted, or the server is stopping."},
    504: {"description": "The network did not answer in time."},
}
BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
AGAIN = {"Retry-After": "1"}


def build_app(worker: Worker, limits: Limits, *, tighten: bool = False) -> FastAPI:
    """Build the service around ``worker``, which the service stops when it ends.

    ``app.state.receiver.close()`` refuses the requests that have not arrived yet.
    """
    metrics = Metrics()
    receiver = Receiver(limits, Prepare.from_notes(worker.facts.prepare))
    batcher: Batcher | None = None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(worker, limits, metrics, tighten=tighten)
        batcher.start()
        yield
        await batcher.close()
        receiver.pool.shutdown()

    app = FastAPI(title=f"deepres: {worker.facts.name}", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.receiver = receiver

    async def answer(request: Request, top: int) -> Prediction:
        """Receive, admit, decode, classify: in this order, so that a refused image costs nothing."""
        assert batcher is not None
        end = asyncio.get_running_loop().time() + limits.timeout
        body = await receiver.body(request, end)
        try:
            with batcher.seat() as seat:
                async with asyncio.timeout_at(end):
                    found = await seat.answer(await receiver.image(body))
        except QueueFull:
            raise HTTPException(503, "the request queue is full; try again", AGAIN) from None
        except TimeoutError:
            raise HTTPException(504, f"no answer within {limits.timeout:g} s") from None
        except WorkerHung:
            raise HTTPException(503, "the network did not answer and is being restarted; try again", AGAIN) from None
        except (WorkerDied, DeepresError):
            raise HTTPException(503, "the network's process died and is being restarted; try again", AGAIN) from None
        except RuntimeError as error:
            raise HTTPException(500, f"the network failed on this image ({error})") from None
        classes = worker.facts.classes
        best = np.argsort(-found.probabilities)[:top]
        named = [Class(name=classes[i] if i < len(classes) else str(i), probability=found.probabilities[i]) for i in best]
        return Prediction(classes=named, depth=found.depth, level=found.level)

    @app.post("/predict", responses=REFUSALS, openapi_extra=BODY, response_model=Prediction)
    async def predict(request: Request, top: int = Query(5, ge=1, le=1000, description="how many classes to name")) -> Any:
        """Classify the image file that is the request's body."""
        began, status = time.perf_counter(), 500
        try:
            prediction = await answer(request, top)
            status = 200
            return prediction
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = HUNG_UP
            return Response(status_code=400)  # nobody reads it
        except asyncio.CancelledError:
            status = HUNG_UP
            raise
        finally:
            metrics.requests.labels(str(status)).inc()
            metrics.seconds.observe(time.perf_counter() - began)

    @app.get("/health", responses={503: {"description": "The network is being loaded again.", "model": Health}})
    async def health(response: Response) -> Health:
        """Say whether images are answered."""
        healthy = batcher is not None and batcher.healthy
        response.status_code = 200 if healthy else 503
        return Health(status="ok" if healthy else "loading", model=worker.facts.name, blocks=worker.facts.blocks)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus's format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(
        Methods, allowed={"/predict": ("POST",), **dict.fromkeys(("/health", "/metrics", "/openapi.json"), ("GET",))}
    )
    return app
