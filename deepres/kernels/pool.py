"""``pooled_tensors``: large tensors of the CPU in blocks that are reused by size, so that no memory is lost between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from deepres.kernels.compiled import library


@contextlib.contextmanager
def pooled_tensors() -> Iterator[None]:
    """While open, new CPU tensors of 256 KiB and more come from a pool, which holds no more than they took at once; see ``pool.cpp``.

    Where there are no compiled kernels, this does nothing.
    """
    kernels = library()
    if kernels is None:
        yield
        return
    kernels.use_pool(1)
    try:
        yield
    finally:
        kernels.use_pool(0)
