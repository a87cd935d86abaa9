"""OpenAI's completions route for a language model: POST /v1/completions, GET /v1/models, /health and /metrics."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from deepres import __version__
from deepres.data import Tokens
from deepres.errors import DeepresError
from deepres.evaluation.sampling import Sampling
from deepres.models.language import LanguageModel
from deepres.serve.continuous import ContinuousBatching, Piece, Sequence, SequencesFull
from deepres.serve.limits import Limits
from deepres.serve.methods import Methods
from deepres.serve.receiving import Receiver

# fields of OpenAI's that would change the answer, and the values at which they do not
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "logprobs": (None, 0, False),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
MOST_SEQUENCES = 64  # of a request: prompts times `n`
CLIENT_LEFT = 499  # the status, for the metrics alone, of a request whose client left


class CompletionRequest(BaseModel):
    """A request, in OpenAI's fields."""

    model_config = ConfigDict(extra="allow")
    model: str = ""
    prompt: str | list[str] = ""
    max_tokens: int | None = Field(16, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=100)
    top_p: float | None = Field(1.0, gt=0, le=1)
    n: int | None = Field(1, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    echo: bool | None = False

    def sampling(self, index: int) -> Sampling:
        """Sampling options of the ``index``-th sequence of the request. With a seed, each is drawn differently and repeatably."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        usual = Sampling()
        return Sampling(
            max_tokens=self.max_tokens or 16,
            temperature=usual.temperature if self.temperature is None else self.temperature,
            top_p=self.top_p or usual.top_p,
            stop=tuple(stop),
            seed=None if self.seed is None else self.seed % 2**62 + index,
        )


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers)


class _Answer:
    """The sequences of one request, and their pieces as they come."""

    def __init__(self, engine: ContinuousBatching, asked: CompletionRequest, prompts: list[tuple[str, Tensor]]) -> None:
        loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()
        self.asked, self.name = asked, engine.language.name
        self.texts = [text for text, _ in prompts]
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.counts = [0] * len(prompts)
        self.prompt_tokens = sum(tokens.shape[1] for _, tokens in prompts)
        self.sequences: list[Sequence] = []

        def deliver(index: int, piece: Piece) -> None:
            loop.call_soon_threadsafe(self.pieces.put_nowait, (index, piece))

        try:
            for index, (_, tokens) in enumerate(prompts):
                how = asked.sampling(index)
                self.sequences.append(engine.submit(tokens, how, lambda piece, index=index: deliver(index, piece)))  # type: ignore[misc]
        except SequencesFull:
            self.cancel()
            raise

    def cancel(self) -> None:
        for sequence in self.sequences:
            sequence.cancel()

    async def each(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all sequences until each has ended. When the caller stops listening, they are cancelled."""
        left = len(self.sequences)
        try:
            while left:
                index, piece = await self.pieces.get()
                self.counts[index] = piece.tokens
                left -= piece.finish is not None
                yield index, piece
        finally:
            self.cancel()

    def body(self, choices: list[dict[str, Any]], usage: bool = False) -> dict[str, Any]:
        whole: dict[str, Any] = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.name}
        whole["choices"] = choices
        if usage:
            drawn = sum(self.counts)
            whole["usage"] = {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": drawn,
                "total_tokens": self.prompt_tokens + drawn,
            }
        return whole

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        parts = [[text] if self.asked.echo else [] for text in self.texts]
        finish: list[str | None] = [None] * len(parts)
        async for index, piece in self.each():
            parts[index].append(piece.text)
            finish[index] = piece.finish
        if "error" in finish:
            raise HTTPException(500, "the network failed on this prompt")
        return self.body([_choice(i, "".join(part), finish[i]) for i, part in enumerate(parts)], usage=True)

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, one a piece, then ``[DONE]``."""
        for index, text in enumerate(self.texts if self.asked.echo else []):
            yield _event(self.body([_choice(index, text, None)]))
        async for index, piece in self.each():
            yield _event(self.body([_choice(index, piece.text, piece.finish)]))
        if (self.asked.stream_options or {}).get("include_usage"):
            yield _event(self.body([], usage=True))
        yield "data: [DONE]\n\n"


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _gone(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Route:
    """Answers the requests to /v1/completions and counts them."""

    def __init__(self, language: LanguageModel, limits: Limits) -> None:
        self.language, self.limits = language, limits
        self.engine = ContinuousBatching(language, limits.batch, limits.queue)
        self.receiver = Receiver(limits, Tokens(language.context))
        self.registry = CollectorRegistry()
        self.requests = Counter("deepres_requests", "Requests by status code.", ["status"], registry=self.registry)
        self.tokens = Counter("deepres_tokens", "Tokens that were drawn and sent.", registry=self.registry)
        for name, what in (("running", "in the batch"), ("waiting", "in front of the batch")):
            gauge = Gauge(f"deepres_{name}_sequences", f"Sequences {what}.", registry=self.registry)
            gauge.set_function(lambda name=name: getattr(self.engine, name))  # type: ignore[misc]

    async def __call__(self, request: Request) -> Response:
        status = 500
        try:
            answered = await self._answer(request)
            status = answered.status_code
            return answered
        except HTTPException as error:
            status = error.status_code
            return _refusal(status, str(error.detail), dict(error.headers or {}))
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        finally:
            self.requests.labels(str(status)).inc()

    async def _answer(self, request: Request) -> Response:
        end = asyncio.get_running_loop().time() + self.limits.timeout
        try:
            body = await self.receiver.body(request, end)
        except HTTPException as error:
            if error.status_code != 415:
                raise
            raise HTTPException(400, "the body is empty; send JSON with a prompt") from None
        asked = self._read(body)
        prompts = self._prompts(asked)
        try:
            answer = _Answer(self.engine, asked, prompts)
        except SequencesFull:
            raise HTTPException(503, "too many sequences wait; try again", {"Retry-After": "1"}) from None
        if asked.stream:
            return StreamingResponse(
                self._counted(answer), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        whole, gone = asyncio.ensure_future(answer.whole()), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                return Response(status_code=CLIENT_LEFT)  # nobody reads it
            return JSONResponse(whole.result())
        finally:
            self.tokens.inc(sum(answer.counts))
            answer.cancel()
            whole.cancel()
            gone.cancel()

    async def _counted(self, answer: _Answer) -> AsyncIterator[str]:
        try:
            async for event in answer.events():
                yield event
        finally:
            answer.cancel()
            self.tokens.inc(sum(answer.counts))

    def _read(self, body: bytes) -> CompletionRequest:
        try:
            asked = CompletionRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc'][:1])) or 'the body'}: {first['msg']}") from None
        for name, usual in UNSUPPORTED.items():
            if (asked.model_extra or {}).get(name) not in usual:
                raise HTTPException(400, f"{name}: is not supported; leave it out")
        return asked

    def _prompts(self, asked: CompletionRequest) -> list[tuple[str, Tensor]]:
        given = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        count = asked.n or 1
        if not 0 < len(given) * count <= MOST_SEQUENCES:
            raise HTTPException(
                400, f"prompt: between 1 and {MOST_SEQUENCES} texts are drawn for a request, not {len(given) * count}"
            )
        try:
            asked.sampling(0)
            ready = [(text, self.language.prompt(text)) for text in given]
        except DeepresError as error:
            raise HTTPException(400, str(error)) from None
        except UnicodeEncodeError:
            raise HTTPException(400, "prompt: a lone surrogate is no text") from None
        return [one for one in ready for _ in range(count)]


def build_completions(language: LanguageModel, limits: Limits) -> FastAPI:
    """Build the service around a language model.

    ``limits.batch`` sequences run at a time and ``limits.queue`` more may wait; further ones are refused with 503.
    ``app.state.receiver.close()`` refuses the requests that have not arrived yet.
    """
    route = _Route(language, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(route.engine.close)
        route.receiver.pool.shutdown()

    app = FastAPI(title=f"deepres: {language.name}", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.receiver = route.receiver
    schema = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": CompletionRequest.model_json_schema()}}}
    }

    @app.post("/v1/completions", openapi_extra=schema)
    async def completions(request: Request) -> Response:
        """Continue a text, in OpenAI's format; with ``stream``, as server-sent events."""
        return await route(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [{"id": language.name, "object": "model", "created": 0, "owned_by": "deepres"}]}

    @app.get("/health")
    async def health(response: Response) -> dict[str, Any]:
        """Say whether texts are answered."""
        response.status_code = 200 if route.engine.alive else 503
        return {"status": "ok" if route.engine.alive else "stopped", "model": language.name}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Give the metrics in Prometheus's format."""
        return Response(generate_latest(route.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _refusal(400, str(error))

    read = dict.fromkeys(("/v1/models", "/health", "/metrics", "/openapi.json"), ("GET",))
    app.add_middleware(Methods, allowed={"/v1/completions": ("POST",), **read})
    return app
