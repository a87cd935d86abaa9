"""The process that holds a detector. Images of any size cross, and boxes come back."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from deepres.errors import DeepresError
from deepres.serve.spec import Facts, Spec
from deepres.serve.worker import DONE, FAILED, Worker, WorkerAnswers

ROW = 6  # of a detection: left, top, right, bottom, class, confidence
_COUNT, _SIZES, _SECONDS = struct.Struct("<I"), struct.Struct("<4I"), struct.Struct("<d")


@dataclass(frozen=True)
class ResizedImage:
    """An image resized for the detector, and its size before."""

    pixels: np.ndarray  # float32 (3, h, w) in 0..1
    size: tuple[int, int]  # (height, width) of the image

    def boxed(self) -> np.ndarray:
        """An array without axes that holds this image: the queue stacks arrays of one shape."""
        held = np.empty((), dtype=object)
        held[()] = self
        return held


class DetectorWorker(Worker):
    """Starts the detector's process and speaks with it, one call at a time."""

    def entry(self) -> Callable[[Connection, Spec], None]:
        return _detect

    def call(self, images: np.ndarray, level: int) -> WorkerAnswers:
        """Detect in an array of ``ResizedImage``s; the answers' ``probabilities`` are an array (n, 6) for each image, see ``ROW``.

        Raises ``WorkerDied`` where the process is gone or goes meanwhile, and ``RuntimeError`` with the network's own error.
        """
        found = self.exchange(_sent(images))
        if found[:1] == FAILED:
            raise RuntimeError(found[1:].decode())
        boxes: Any = _unpacked(found, len(images))
        return WorkerAnswers(boxes, np.ones(len(images), np.float32), _SECONDS.unpack_from(found, 1)[0])


def _sent(images: np.ndarray) -> Iterator[bytes | memoryview]:
    """The messages that ``_detect`` reads: a count, then for each image its sizes and its pixels."""
    yield _COUNT.pack(len(images))
    for one in images:
        yield _SIZES.pack(*one.pixels.shape[1:], *one.size)
        yield np.ascontiguousarray(one.pixels).reshape(-1).data


def _unpacked(message: bytes, images: int) -> list[np.ndarray]:
    place, boxes = 1 + _SECONDS.size, []
    for _ in range(images):
        (count,) = _COUNT.unpack_from(message, place)
        place += _COUNT.size
        boxes.append(np.frombuffer(message, np.float32, count * ROW, place).reshape(count, ROW))
        place += 4 * count * ROW
    return boxes


def _packed(seconds: float, boxes: Sequence[np.ndarray]) -> bytes:
    parts = [DONE, _SECONDS.pack(seconds)]
    for one in boxes:
        parts += [_COUNT.pack(len(one)), np.ascontiguousarray(one, np.float32).tobytes()]
    return b"".join(parts)


def _detect(pipe: Connection, spec: Spec) -> None:
    """Load, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    from deepres.detection import load_detector
    from deepres.detection.predicting import detect_resized
    from deepres.training.distribute import pick_device

    try:
        spec.need_pytorch("a detector")
        if spec.weights is not None:
            raise DeepresError("--weights: a detector's file holds its weights; leave --weights out")
        device = pick_device(spec.device)
        model = load_detector(spec.reference).to(device).to(memory_format=torch.channels_last)
    except DeepresError as error:
        pipe.send(str(error))
        return
    except Exception as error:
        pipe.send(f"{spec.reference}: cannot be loaded ({type(error).__name__}: {error})")
        return
    config = model.config
    prepare = {"size": config.size, "longest": config.longest, "antialias": config.antialias}
    pipe.send(Facts(Path(spec.reference).name, config.classes, prepare, 0, 0))
    while True:
        try:
            (count,) = _COUNT.unpack(pipe.recv_bytes())
            images, sizes = [], []
            for _ in range(count):
                tall, wide, *size = _SIZES.unpack(pipe.recv_bytes())
                pixels = bytearray(pipe.recv_bytes())  # writable, as PyTorch wants it
                images.append(torch.frombuffer(pixels, dtype=torch.float32).view(3, tall, wide))
                sizes.append((size[0], size[1]))
        except (EOFError, OSError):
            return
        began = time.perf_counter()
        try:
            found = detect_resized(model, [image.to(device) for image in images], sizes)
            boxes = [
                torch.cat((one["boxes"], one["labels"][:, None] - 1, one["scores"][:, None]), 1).cpu().numpy() for one in found
            ]
            pipe.send_bytes(_packed(time.perf_counter() - began, boxes))
        except Exception as error:
            pipe.send_bytes(FAILED + f"{type(error).__name__}: {error}".encode())
