"""The request queue: admit images one by one, run them through the network in batches, give each its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from deepres.errors import DeepresError
from deepres.serve.limits import Limits
from deepres.serve.metrics import Metrics
from deepres.serve.worker import Worker, WorkerAnswers, WorkerDied, WorkerHung

CHECK = 0.25  # seconds between checks of the worker process


class QueueFull(Exception):
    """The request queue is full."""


@dataclass(frozen=True)
class Answer:
    """The network's answer for one image."""

    probabilities: np.ndarray  # (classes,)
    depth: float  # share of the blocks that ran
    level: int  # steps by which a ghost was tightened


@dataclass
class Seat:
    """A place in the queue. It is given back when a call takes the image, or when the request ends before that."""

    batcher: Batcher
    held: bool = True

    async def answer(self, image: np.ndarray) -> Answer:
        """Queue ``image``, uint8 (C, H, W), and wait for its answer.

        Raises ``WorkerDied`` where the network's process was lost under the image, and ``RuntimeError`` where the network failed.
        """
        return await self.batcher.enqueue(self, image)

    def release(self) -> None:
        if self.held:
            self.held = False
            self.batcher.admitted -= 1


@dataclass
class Waiting:
    """An image in the queue."""

    image: np.ndarray
    future: asyncio.Future[Answer]
    seat: Seat
    since: float  # the loop's time


class Batcher:
    """Collects images of concurrent requests into batches for one worker. Belongs to one event loop."""

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics, *, tighten: bool = False) -> None:
        self.worker, self.limits, self.metrics, self.tighten = worker, limits, metrics, tighten
        self.waiting: asyncio.Queue[Waiting] = asyncio.Queue()
        self.admitted = 0  # seats held: images that are being decoded or wait
        self.pool = ThreadPoolExecutor(1)  # one call at a time
        self.tasks: list[asyncio.Task[None]] = []
        self.closed = False

    @property
    def healthy(self) -> bool:
        """Return whether the worker answers. False from the moment that it dies or is killed until it has loaded the network again."""
        return self.worker.alive and self.worker.ready

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self._run()), loop.create_task(self._supervise())]

    @contextlib.contextmanager
    def seat(self) -> Iterator[Seat]:
        """Admit one image, before anything is spent on it.

        Raises ``QueueFull``.
        """
        if self.admitted >= self.limits.queue:
            raise QueueFull
        self.admitted += 1
        taken = Seat(self)
        try:
            yield taken
        finally:
            taken.release()

    async def enqueue(self, seat: Seat, image: np.ndarray) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait(Waiting(image, future, seat, asyncio.get_running_loop().time()))
        self.metrics.waiting.set(self.waiting.qsize())
        return await future

    async def close(self) -> None:
        """Answer what was admitted, then stop the worker."""
        while self.waiting.qsize():
            await asyncio.sleep(0.01)
        self.closed = True
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.worker.stop()  # a call that nobody waits for any more ends with it
        self.pool.shutdown(wait=True)

    async def _run(self) -> None:
        """Collect a batch, call the network, and again."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            end = loop.time() + self.limits.wait
            while len(batch) < self.limits.batch:
                if not self.waiting.empty():
                    batch.append(self.waiting.get_nowait())
                    continue
                left = end - loop.time()
                if left <= 0 or self.admitted <= len(batch):  # the worker is idle, and no other image is being decoded
                    break
                try:
                    batch.append(await asyncio.wait_for(self.waiting.get(), left))
                except TimeoutError:
                    break
            for one in batch:
                one.seat.release()
            self.metrics.waiting.set(self.waiting.qsize())
            batch = [one for one in batch if not one.future.done()]  # the others hung up or ran out of time
            if batch:
                await asyncio.shield(self._call(batch))

    async def _supervise(self) -> None:
        """Kill a worker whose call takes too long; start a dead one again even if no request comes to find it dead."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK)
            if self.worker.seconds_in_call() > self.limits.call_timeout:
                self.worker.kill_hung()
            elif not self.worker.alive:
                with contextlib.suppress(DeepresError):  # it cannot be loaded now: /health says so, and it is tried again
                    await loop.run_in_executor(self.pool, self._restart)

    def _level(self) -> int:
        """Steps to tighten a ghost by: one for every full batch that waits behind this one."""
        if not self.tighten:
            return 0
        return min(self.worker.facts.levels, self.waiting.qsize() // self.limits.batch)

    async def _call(self, batch: list[Waiting]) -> None:
        level = self._level()
        self.metrics.level.set(level)
        self.metrics.batch.observe(len(batch))
        images = np.stack([one.image for one in batch])
        began = asyncio.get_running_loop().time()
        for one in batch:
            self.metrics.stage("wait", began - one.since)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.pool, self._ask, images, level)
        except Exception as error:
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        self.metrics.call.observe(found.seconds)
        self.metrics.stage("transfer", asyncio.get_running_loop().time() - began - found.seconds)
        for row, one in enumerate(batch):
            self.metrics.depth.observe(float(found.depth[row]))
            if not one.future.done():
                one.future.set_result(Answer(found.probabilities[row], float(found.depth[row]), level))

    def _ask(self, images: np.ndarray, level: int) -> WorkerAnswers:
        """Call the worker. A batch that it died under is asked once more; one that it hung on is not, as it may hang again."""
        try:
            return self.worker.call(images, level)
        except WorkerHung:
            self._restart()
            raise
        except WorkerDied:
            if self.closed:
                raise
            self._restart()
            return self.worker.call(images, level)

    def _restart(self) -> None:
        if self.worker.alive or self.closed:
            return
        self.metrics.restarts.inc()
        self.worker.stop()
        self.worker.start()
