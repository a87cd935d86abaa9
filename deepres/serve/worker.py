"""The process that holds the network, apart from the one that speaks HTTP, so that neither stalls nor takes down the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from deepres.errors import DeepresError
from deepres.serve.spec import Facts, Spec

LOADING = 900.0  # seconds that loading a network may take, and measuring the engines for it
ENDING = 5.0  # seconds that an idle process may take to end


class WorkerDied(Exception):
    """The network's process was killed or crashed."""


class WorkerHung(WorkerDied):
    """The network's process was killed because a call took too long."""


@dataclass(frozen=True)
class WorkerAnswers:
    """Answers for one batch."""

    probabilities: np.ndarray  # (N, classes)
    depth: np.ndarray  # (N,): share of the blocks that ran
    seconds: float

    def to_bytes(self) -> bytes:
        arrays = (np.ascontiguousarray(values, dtype=np.float32) for values in (self.probabilities, self.depth))
        return b"".join((DONE, struct.pack("<d", self.seconds), *(values.tobytes() for values in arrays)))

    @classmethod
    def from_bytes(cls, message: bytes, rows: int) -> WorkerAnswers:
        """Read ``to_bytes``. Raises ``RuntimeError`` with the network's error, where the message is one."""
        if message[:1] == FAILED:
            raise RuntimeError(message[1:].decode())
        values = np.frombuffer(message, np.float32, offset=1 + 8)
        return cls(values[:-rows].reshape(rows, -1), values[-rows:], *struct.unpack_from("<d", message, 1))


# Pixels and probabilities cross as raw bytes; pickling a batch of photographs would copy it several times.
_HEADER = struct.Struct("<5I")  # level, N, C, H, W
DONE, FAILED = b"=", b"!"


class Worker:
    """Starts the network's process and speaks with it, one call at a time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: Any = None
        self.ready = False  # whether the network is loaded
        self.called: float | None = None  # when the call under way began
        self.hung = False  # whether it was killed for taking too long
        self.facts = self.start()

    def start(self) -> Facts:
        """Start the process and wait until the network is loaded.

        Raises ``DeepresError`` where it cannot be loaded.
        """
        context = multiprocessing.get_context("spawn")
        self.ready = self.hung = False
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=self.entry(), args=(far, self.spec), daemon=True, name="deepres-worker")
        self.process.start()
        far.close()
        try:
            if not self.pipe.poll(LOADING):
                raise DeepresError(f"{self.spec.reference}: could not be loaded within {LOADING:.0f} s")
            first = self.pipe.recv()
            if isinstance(first, str):
                raise DeepresError(first)
        except EOFError as error:
            self.stop()
            raise DeepresError(f"{self.spec.reference}: the process that loads it died; is there enough memory?") from error
        except BaseException:
            self.stop()
            raise
        assert isinstance(first, Facts)
        self.ready = True
        return first

    def entry(self) -> Callable[[Connection, Spec], None]:
        """The function that the process runs."""
        return _work

    def call(self, images: np.ndarray, level: int) -> WorkerAnswers:
        """Classify uint8 (N, C, H, W).

        Raises ``WorkerDied`` where the process is gone or goes meanwhile, and ``RuntimeError`` with the network's own error.
        """
        pixels = np.ascontiguousarray(images).reshape(-1).data
        return WorkerAnswers.from_bytes(self.exchange((_HEADER.pack(level, *images.shape), pixels)), len(images))

    def exchange(self, messages: Iterable[bytes | memoryview]) -> bytes:
        """Send ``messages`` to the process and wait for its answer.

        Raises ``WorkerDied`` where the process is gone or goes meanwhile, ``WorkerHung`` where it was killed for taking too long.
        """
        self.called = time.monotonic()
        try:
            for message in messages:
                self.pipe.send_bytes(message)
            return self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self.process.kill()  # it may still be a zombie
            self.process.join()
            raise (WorkerHung if self.hung else WorkerDied) from error
        finally:
            self.called = None

    @property
    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def seconds_in_call(self) -> float:
        """Seconds since the current call began; 0 without a call."""
        called = self.called
        return 0.0 if called is None else time.monotonic() - called

    def kill_hung(self) -> None:
        """Kill the process under its call, which raises ``WorkerHung``."""
        self.hung, self.ready = True, False
        self.process.kill()

    def stop(self) -> None:
        """End the process: at once if it is in a call, else by closing its pipe."""
        self.ready = False
        if self.called is not None:
            self.process.kill()  # its death ends the call; the pipe must not be closed under it
            self.process.join()
            return
        self.pipe.close()
        self.process.join(ENDING)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Connection, spec: Spec) -> None:
    """Load, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ImportError):
        from tqdm import tqdm  # type: ignore[import-untyped]

        # torch.export draws bars with it, whose own lock would be a semaphore of the system that a killed process leaves behind
        tqdm.set_lock(threading.RLock())
    import torch

    from deepres.data import Prepare
    from deepres.serve.loading import load_answering
    from deepres.training.distribute import pick_device

    try:
        answering, facts = load_answering(spec)
    except DeepresError as error:
        pipe.send(str(error))
        return
    except Exception as error:  # whatever a library says of a file that is not what it should be
        pipe.send(f"{spec.reference}: cannot be loaded ({type(error).__name__}: {error})")
        return
    prepare = Prepare.from_notes(facts.prepare)
    device = pick_device(spec.device)
    pipe.send(facts)
    while True:
        try:
            level, *shape = _HEADER.unpack(pipe.recv_bytes())
            pixels = bytearray(pipe.recv_bytes())  # writable, as PyTorch wants it
        except (EOFError, OSError):
            return
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                images = torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
                x = prepare.normalise(images.to(device))
                logits, depth = answering(x, level)
                probabilities = logits.float().softmax(1).cpu().numpy()
            pipe.send_bytes(WorkerAnswers(probabilities, depth.numpy(), time.perf_counter() - began).to_bytes())
        except Exception as error:
            pipe.send_bytes(FAILED + f"{type(error).__name__}: {error}".encode())
