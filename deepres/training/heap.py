"""Freed memory kept by the process between steps, where glibc allocates."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# glibc's mallopt: the numbers of two parameters, and the values to restore
_TRIM, _MMAP, _TRIM_DEFAULT, _MMAP_DEFAULT = -1, -3, 64 << 20, 32 << 20


def give_back() -> None:
    """Give freed memory that the process still holds back to the system; without glibc this does nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def heap_kept() -> Iterator[None]:
    """While open, memory that a step frees stays with the process for the next step; afterwards it goes back.

    As it is, the C library gives large activations back to the system after each step and the next one pays for every page
    again. It needs glibc; elsewhere this does nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        yield
        return
    mallopt(_MMAP, 1 << 30)
    mallopt(_TRIM, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_MMAP, _MMAP_DEFAULT)
        mallopt(_TRIM, _TRIM_DEFAULT)
        give_back()
