"""Work on many images at once, in order: threads, or processes with a thread each.

Pillow releases Python's lock while it decodes and resizes, so threads keep the cores busy up to some eight of them; beyond, the 0.3 ms
of Python that an image takes begin to queue, and each thread hands its work to a process of its own. Such a process is a plain
Python that runs ``decode_keys``: it imports nothing of the caller's main module, and ends when its pipe does, however the caller
ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from deepres.errors import DeepresError

THREADS = 8  # up to so many workers are threads
_AHEAD = 4  # groups

Key = TypeVar("Key")
_Value = TypeVar("_Value")


def usual_workers() -> int:
    """Return the number of workers: one for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(THREADS, cores)


def in_groups(
    work: Callable[[Key], _Value],
    groups: Iterable[Sequence[Key]],
    workers: int,
    *,
    processes: bool | None = None,
) -> Generator[list[_Value], None, None]:
    """``[work(key) for key in group]`` for each group, in order, computed by ``workers`` up to four groups in advance.

    ``workers`` 0 computes in the caller's thread. ``processes``: whether each worker is a process [above 8 workers]; ``work`` and its
    values are then pickled.

    Raises what ``work`` raises, and ``DeepresError`` for a process that was killed.
    """
    if workers == 0:
        for group in groups:
            yield [work(key) for key in group]
        return
    remote = _Remote(work) if (workers > THREADS if processes is None else processes) else None
    executor = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[list[Future[_Value]]] = deque()
    try:
        for group in groups:
            waiting.append([executor.submit(remote or work, key) for key in group])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        executor.shutdown(cancel_futures=True)
        if remote is not None:
            remote.close()


class _Remote:
    """Calls ``work`` in a process that belongs to the calling thread."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = pickle.dumps(work)
        self.local = threading.local()
        self.lock = threading.Lock()
        self.processes: list[subprocess.Popen[bytes]] = []

    def _process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] | None = getattr(self.local, "process", None)
        if process is None:
            command = [sys.executable, "-c", "from deepres.data.decode_pool import decode_keys; decode_keys()"]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            with self.lock:
                self.processes.append(process)
            self.local.process = process
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # whoever sends a key notices it too
                process.stdin.write(self.work)
        return process

    def __call__(self, key: Any) -> Any:
        process = self._process()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(key, process.stdin)
            process.stdin.flush()
            value = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise DeepresError(
                f"a decode process ended unexpectedly (exit code {process.wait()}); if memory ran out, give fewer --workers"
            ) from error
        if isinstance(value, BaseException):
            raise value
        return value

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # of a process that ended, with a key unsent
                process.stdin.close()
            process.stdout.close()
            process.wait()


def decode_keys() -> None:
    """The other end of ``_Remote``: a pickled callable, then keys, each answered by its value, until the pipe closes."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the caller decides when to stop
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    try:
        work = pickle.load(source)
        while True:
            key = pickle.load(source)
            try:
                value = work(key)
            except Exception as error:
                value = error
            pickle.dump(value, sink, protocol=pickle.HIGHEST_PROTOCOL)
            sink.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)
