"""From a request to an image's pixels: bounded in size, in time, and in the formats that are decoded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastapi import HTTPException, Request
from PIL import Image

from deepres.data import OversizedImage, Prepare, UnreadableImage, open_image
from deepres.errors import DeepresError
from deepres.serve.limits import Limits

# Pillow's names of the formats that are decoded; it knows thirty more, whose decoders meet few well-meant files
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
DRAIN = 8  # a body that is refused is read up to this many times the largest one, so that its client sees the answer
ADVICE = "send a file of one of these formats as it is: " + ", ".join(FORMATS)


class Receiver:
    """Receives bodies and decodes images. Its errors are ``HTTPException``s with the status to answer."""

    def __init__(self, limits: Limits, prepare: Prepare) -> None:
        self.limits, self.prepare = limits, prepare
        self.pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))  # bounds the memory that decoding takes at a time
        self.open: set[asyncio.Timeout] = set()  # deadlines of the bodies that are being received
        self.closed = False

    def close(self) -> None:
        """Refuse every body that has not arrived; images whose bodies have are still decoded."""
        self.closed = True
        now = asyncio.get_running_loop().time()
        for deadline in self.open:
            deadline.reschedule(now)

    @contextlib.asynccontextmanager
    async def _deadline(self, when: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(when) as deadline:
                self.open.add(deadline)
                try:
                    yield
                finally:
                    self.open.discard(deadline)
        except TimeoutError:
            closing = {"Connection": "close"}  # the rest of the body would be taken for the next request
            if self.closed:
                raise HTTPException(503, "the server is stopping", closing) from None
            raise HTTPException(408, f"the body did not arrive within {self.limits.timeout:g} s", closing) from None

    async def body(self, request: Request, until: float) -> bytes:
        """The request's body; ``until`` is the loop's time at which receiving ends."""
        most, parts, size = self.limits.body, [], 0
        if self.closed:
            raise HTTPException(503, "the server is stopping", {"Connection": "close"})
        async with self._deadline(until):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > DRAIN * most:
                    break
        if size > most:
            raise HTTPException(413, f"the body is too large; at most {most:,} bytes are taken")
        if not size:
            raise HTTPException(415, "the body is empty; send an image file as it is")
        return b"".join(parts)

    async def image(self, body: bytes) -> np.ndarray:
        """Decode on a thread. Gives uint8 (C, H, W)."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._decode, body)

    def _decode(self, body: bytes) -> np.ndarray:
        try:
            image = open_image(body, self.prepare.channels, formats=FORMATS, check=self._check)
            return self.prepared(image)
        except (OversizedImage, _TooManyPixels) as error:
            raise HTTPException(413, str(error)) from None
        except UnreadableImage as error:
            raise HTTPException(415, f"{str(error).removeprefix('image: ')}; {ADVICE}") from None

    def prepared(self, image: Image.Image) -> np.ndarray:
        """The pixels that the worker takes."""
        return self.prepare.image(image).numpy()

    def _check(self, image: Image.Image) -> None:
        if image.width * image.height > self.limits.pixels:
            raise _TooManyPixels(
                f"the image has {image.width:,} x {image.height:,} pixels; at most {self.limits.pixels:,} in all are taken"
            )


class _TooManyPixels(DeepresError):
    """An image above the server's own limit; raised before its pixels are decoded."""
