"""The HTTP service: POST /predict, GET /health, /metrics and /openapi.json."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from deepres import __version__
from deepres.data import Prepare
from deepres.errors import DeepresError
from deepres.serve.batcher import Answer, Batcher, QueueFull
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
    engine: str = Field(description="engine and precision that the network runs in; none for PyTorch as it is")


REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body or the image is too large."},
    415: {"description": "The body is not an image that can be read."},
    503: {"description": "The request queue is full, the network is being restarted, or the server is stopping."},
    504: {"description": "The network did not answer in time."},
}
BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
AGAIN = {"Retry-After": "1"}


class Predictions:
    """Answers requests to /predict, and counts them."""

    def __init__(self, worker: Worker, limits: Limits, *, tighten: bool, receiver: Receiver | None = None) -> None:
        self.worker, self.limits, self.tighten = worker, limits, tighten
        self.metrics = Metrics()
        self.receiver = receiver or Receiver(limits, Prepare.from_notes(worker.facts.prepare))
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Collect batches from the start of the service to its end."""
        self.batcher = Batcher(self.worker, self.limits, self.metrics, tighten=self.tighten)
        self.batcher.start()
        yield
        await self.batcher.close()
        self.receiver.pool.shutdown()

    async def predict(
        self, request: Request, top: int = Query(5, ge=1, le=1000, description="how many classes to name")
    ) -> Response:
        """Classify the image file that is the request's body."""
        return await self.respond(request, lambda found: self._body(found, top))

    async def respond(self, request: Request, body: Callable[[Answer], bytes]) -> Response:
        """Answer a request by ``body`` of what the network finds, and count it."""
        began, status = time.perf_counter(), 500
        try:
            found = await self._answer(request)
            ready = time.perf_counter()
            response = Response(body(found), media_type="application/json")
            self.metrics.stage("answer", time.perf_counter() - ready)
            status = 200
            return response
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
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.perf_counter() - began)

    async def _answer(self, request: Request) -> Answer:
        """Receive, admit, decode, classify: in this order, so that a refused image costs nothing."""
        assert self.batcher is not None
        began = time.perf_counter()
        end = asyncio.get_running_loop().time() + self.limits.timeout
        body = await self.receiver.body(request, end)
        received = time.perf_counter()
        self.metrics.stage("receive", received - began)
        try:
            with self.batcher.seat() as seat:
                async with asyncio.timeout_at(end):
                    image = await self.receiver.image(body)
                    self.metrics.stage("decode", time.perf_counter() - received)
                    return await seat.answer(image)
        except QueueFull:
            raise HTTPException(503, "the request queue is full; try again", AGAIN) from None
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.limits.timeout:g} s") from None
        except WorkerHung:
            raise HTTPException(503, "the network did not answer and is being restarted; try again", AGAIN) from None
        except (WorkerDied, DeepresError):
            raise HTTPException(503, "the network's process died and is being restarted; try again", AGAIN) from None
        except RuntimeError as error:
            raise HTTPException(500, f"the network failed on this image ({error})") from None

    def _body(self, found: Answer, top: int) -> bytes:
        """A ``Prediction`` as JSON, written directly: building and validating the model takes longer than some networks."""
        classes = self.worker.facts.classes
        best = np.argsort(-found.probabilities)[:top].tolist()
        named = [
            {"name": classes[i] if i < len(classes) else str(i), "probability": float(found.probabilities[i])} for i in best
        ]
        return json.dumps({"classes": named, "depth": found.depth, "level": found.level}, ensure_ascii=False).encode()


def build_app(worker: Worker, limits: Limits, *, tighten: bool = False) -> FastAPI:
    """Build the service around ``worker``, which the service stops when it ends.

    ``app.state.receiver.close()`` refuses the requests that have not arrived yet.
    """
    return app_around(Predictions(worker, limits, tighten=tighten), Prediction)


def app_around(service: Predictions, answer: type[BaseModel]) -> FastAPI:
    """The routes of ``service``, which answers an image by ``answer``."""
    facts = service.worker.facts
    app = FastAPI(title=f"deepres: {facts.name}", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None)
    app.state.receiver = service.receiver
    options: dict[str, Any] = {"responses": {200: {"model": answer}, **REFUSALS}, "openapi_extra": BODY}
    app.post("/predict", response_class=JSONResponse, **options)(service.predict)

    @app.get("/health", responses={503: {"description": "The network is being loaded again.", "model": Health}})
    async def health(response: Response) -> Health:
        """Say whether images are answered."""
        healthy = service.batcher is not None and service.batcher.healthy
        response.status_code = 200 if healthy else 503
        return Health(status="ok" if healthy else "loading", model=facts.name, blocks=facts.blocks, engine=facts.engine)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus's format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(
        Methods, allowed={"/predict": ("POST",), **dict.fromkeys(("/health", "/metrics", "/openapi.json"), ("GET",))}
    )
    return app
