"""Ctrl-C and SIGTERM, taken up where a run can be saved."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C or SIGTERM sets the event; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def asked(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _ordinary_stack():
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _SignalStack(ctypes.Structure):
    """``stack_t`` of signal.h."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_DISABLED = 2  # SS_DISABLE


@contextlib.contextmanager
def _ordinary_stack() -> Iterator[None]:
    """While open, this thread's signal handlers run on its ordinary stack.

    Python's handlers run on the alternate stack where there is one. Quantizing with NNCF and OpenVINO leaves one of 11 KB behind, in
    which a processor with wide registers has no room for them: a signal then ends the process with a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(ctypes.byref(_SignalStack(None, _DISABLED, 0)), ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
