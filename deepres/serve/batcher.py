"""Images from many requests become batches; what cannot be answered in time is refused before it costs anything."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deepres.errors import DeepresError
from deepres.serve.worker import Answers, Worker, WorkerDied

WATCH = 1.0  # seconds between looks at the worker


@dataclass(frozen=True)
class Limits:
    """What a server takes on."""

    batch: int = 32  # images of a call, at most
    wait: float = 0.002  # seconds to wait for more of them
    queue: int = 256  # images that may wait
    timeout: float = 30.0  # seconds that one may take, waiting included
    body: int = 8_000_000  # bytes of a request
    pixels: int = 50_000_000  # of an image


class Full(Exception):
    """As many images wait as may."""


@dataclass(frozen=True)
class Answer:
    """Of one image."""

    probabilities: np.ndarray  # (classes,)
    depth: float  # share of the blocks that ran
    level: int  # how far a ghost had tightened


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        latency = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        more: Any = {"registry": self.registry}
        self.requests = Counter("deepres_requests", "Requests to /predict by status.", ["status"], **more)
        self.seconds = Histogram("deepres_request_seconds", "From the request to its answer.", buckets=latency, **more)
        self.call = Histogram("deepres_call_seconds", "Of the network, for a batch.", buckets=latency, **more)
        self.batch = Histogram("deepres_batch_images", "Images of a call.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), **more)
        self.waiting = Gauge("deepres_waiting_images", "Images that wait for a call.", **more)
        self.depth = Histogram("deepres_depth", "Share of the blocks that ran.", buckets=[i / 10 for i in range(1, 11)], **more)
        self.level = Gauge("deepres_ghost_level", "Steps by which the ghost is tightened; 0 is as it was made.", **more)
        self.restarts = Counter("deepres_worker_restarts", "Times that the worker died and was started again.", **more)


class Batcher:
    """Takes images one by one and gives their answers. For one event loop."""

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics, *, tighten: bool = False) -> None:
        self.worker, self.limits, self.metrics, self.tighten = worker, limits, metrics, tighten
        self.waiting: asyncio.Queue[tuple[np.ndarray, asyncio.Future[Answer]]] = asyncio.Queue()
        self.pool = ThreadPoolExecutor(1)
        self.tasks: list[asyncio.Task[None]] = []
        self.ready = True  # whether the worker answers

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self._run()), loop.create_task(self._watch())]

    async def answer(self, image: np.ndarray) -> Answer:
        """uint8 (C, H, W). Raises ``Full``, and ``TimeoutError`` after ``limits.timeout``."""
        if self.waiting.qsize() >= self.limits.queue:
            raise Full
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((image, future))
        self.metrics.waiting.set(self.waiting.qsize())
        return await asyncio.wait_for(future, self.limits.timeout)

    async def close(self) -> None:
        """Answer what was accepted, then stop."""
        while self.waiting.qsize():
            await asyncio.sleep(0.01)
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.pool.shutdown(wait=True)
        self.worker.stop()

    async def _run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            end = asyncio.get_running_loop().time() + self.limits.wait
            while len(batch) < self.limits.batch:
                left = end - asyncio.get_running_loop().time()
                try:
                    batch.append(self.waiting.get_nowait() if left <= 0 else await asyncio.wait_for(self.waiting.get(), left))
                except (asyncio.QueueEmpty, TimeoutError):
                    break
            self.metrics.waiting.set(self.waiting.qsize())
            batch = [one for one in batch if not one[1].done()]  # whoever hung up or ran out of time needs no answer
            if batch:
                await asyncio.shield(self._call(batch))

    async def _watch(self) -> None:
        """Start the worker again where it died with nobody asking; whoever balances the load waits for /health."""
        while True:
            await asyncio.sleep(WATCH)
            if not self.worker.alive:
                with contextlib.suppress(DeepresError):  # cannot be loaded any more: /health says so, and it is tried again
                    await asyncio.get_running_loop().run_in_executor(self.pool, self._revive)

    def _level(self) -> int:
        """A step for every batch that waits behind this one."""
        if not self.tighten:
            return 0
        return min(self.worker.facts.levels, self.waiting.qsize() // self.limits.batch)

    async def _call(self, batch: list[tuple[np.ndarray, asyncio.Future[Answer]]]) -> None:
        level = self._level()
        self.metrics.level.set(level)
        self.metrics.batch.observe(len(batch))
        images = np.stack([image for image, _ in batch])
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self.pool, self._ask, images, level)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self.metrics.call.observe(found.seconds)
        for row, (_, future) in enumerate(batch):
            self.metrics.depth.observe(float(found.depth[row]))
            if not future.done():
                future.set_result(Answer(found.probabilities[row], float(found.depth[row]), level))

    def _ask(self, images: np.ndarray, level: int) -> Answers:
        """Once more where the worker died under it."""
        try:
            return self.worker.call(images, level)
        except WorkerDied:
            self._revive()
            return self.worker.call(images, level)

    def _revive(self) -> None:
        if self.worker.alive:
            return
        self.ready = False
        self.metrics.restarts.inc()
        self.worker.stop()
        self.worker.start()
        self.ready = True
