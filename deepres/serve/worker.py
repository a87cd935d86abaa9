"""The process that holds the network. Apart from the one that speaks HTTP, so that neither stalls nor takes down the other."""

from __future__ import annotations

import json
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from deepres.errors import DeepresError

STARTING = 300.0  # seconds that loading a network may take


class WorkerDied(Exception):
    """The process is gone, killed or crashed."""


@dataclass(frozen=True)
class Spec:
    """What to load."""

    reference: str
    weights: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Facts:
    """What the other side has to know of the network."""

    name: str
    classes: tuple[str, ...]
    prepare: dict[str, Any]  # see ``Prepare.from_notes``
    blocks: int  # 0: no ghost
    levels: int  # how many steps a ghost can tighten by


@dataclass(frozen=True)
class Answers:
    """Of one batch."""

    probabilities: np.ndarray  # (N, classes)
    depth: np.ndarray  # (N,): share of the blocks that ran
    seconds: float


class Worker:
    """Starts the process and speaks with it; one call at a time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: Any = None
        self.facts = self.start()

    def start(self) -> Facts:
        """Raises ``DeepresError`` where the network cannot be loaded."""
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far, self.spec), daemon=True, name="deepres-worker")
        self.process.start()
        far.close()
        try:
            if not self.pipe.poll(STARTING):
                raise DeepresError(f"{self.spec.reference}: could not be loaded within {STARTING:.0f} s")
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
        return first

    def call(self, images: np.ndarray, level: int) -> Answers:
        """uint8 (N, C, H, W). Raises ``WorkerDied``."""
        try:
            self.pipe.send((images, level))
            found = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.kill()  # it may be a zombie still
            self.process.join()
            raise WorkerDied from error
        if isinstance(found, str):
            raise RuntimeError(found)
        assert isinstance(found, Answers)
        return found

    @property
    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def stop(self) -> None:
        self.pipe.close()  # ends its loop
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Connection, spec: Spec) -> None:
    """Load, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import time

    import torch

    from deepres.adapters import logits_in, logits_of
    from deepres.data import Prepare
    from deepres.ghosting import Ghost

    try:
        model, facts, steps = _load(spec)
    except DeepresError as error:
        pipe.send(str(error))
        return
    except Exception as error:  # whatever a library says of a file that is not what it should be
        pipe.send(f"{spec.reference}: cannot be loaded ({type(error).__name__}: {error})")
        return
    prepare = Prepare.from_notes(facts.prepare)
    device = next(model.parameters()).device
    pipe.send(facts)
    while True:
        try:
            images, level = pipe.recv()
        except (EOFError, OSError):
            return
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                x = prepare.normalise(torch.from_numpy(images).to(device))
                depth = np.ones(len(images), dtype=np.float32)
                if isinstance(model, Ghost):
                    model.settings = steps[min(level, len(steps) - 1)]
                    logits = logits_in(model(x, trace=True))
                    assert model.trace is not None
                    depth = model.trace.ran.float().mean(1).numpy()
                else:
                    logits = logits_of(model, x)
                probabilities = logits.float().softmax(1).cpu().numpy()
            pipe.send(Answers(probabilities, depth, time.perf_counter() - began))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def _load(spec: Spec) -> tuple[Any, Facts, list[Any]]:
    """(the network or ghost, its facts, a ghost's settings from as chosen to ever faster)."""
    from deepres.data import Prepare
    from deepres.ghosting import Ghost, Settings, load_ghost
    from deepres.ghosting.choose import Point, best
    from deepres.ghosting.make import FILE, HEADS
    from deepres.models import input_channels, input_size, open_model, output_classes
    from deepres.training.distribute import pick_device

    steps: list[Any] = []
    folder = Path(spec.reference)
    model: Any
    if (folder / HEADS).exists():
        model, noted = load_ghost(folder)
        told = json.loads((folder / FILE).read_text())
        points = [Point(**{**point, "settings": Settings(**point["settings"])}) for point in told["points"]]
        chosen = Point(**{**told["point"], "settings": model.settings})
        faster = [p.settings for p in sorted(best(points), key=lambda p: -p.time) if p.time < chosen.time]
        steps = [model.settings, *faster[:: max(1, len(faster) // 4)][:4]]
    else:
        model, noted = open_model(spec.reference, weights=spec.weights)
    model = model.eval().to(pick_device(spec.device))
    net = model.net if isinstance(model, Ghost) else model
    channels = input_channels(net) or 3
    if "prepare" in noted:
        prepare = Prepare.from_notes(noted["prepare"])
    else:
        prepare = Prepare.usual(input_size(net) or (32 if spec.reference.endswith("-cifar") else 224), channels)
    classes = noted.get("classes") or [str(i) for i in range(output_classes(net) or 0)]
    blocks = len(model.units) if isinstance(model, Ghost) else 0
    facts = Facts(folder.name, tuple(classes), prepare.to_notes(), blocks, max(0, len(steps) - 1))
    return model, facts, steps
