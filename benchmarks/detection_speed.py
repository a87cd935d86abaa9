"""Images per second of a detector's training step and prediction: ours, and torchvision's as it is and tuned, in alternating turns.

    python -m benchmarks.detection_speed --data ../shared/data/bccd-voc    # some ten minutes on two cores

All are ResNet-18 with a feature pyramid at 320 pixels. "deepres" has the widths of the recipe ``small``; "deepres, torchvision's widths"
is the network that torchvision builds: maps of stride 4 to 32 with 256 channels, and heads of 1,024. torchvision as it is runs in float32
with its own numbers of regions. Tuned, it has ours, the precision and memory layout that the processor is fastest in, and a compiled
backbone where that is faster: the ratios are to the faster of the two.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import SPEED, alternate, record, summary
from benchmarks.detection import PROPOSALS, REGIONS, peer_step, run_of, torchvision_detector
from deepres.data.detection import BoxData, open_boxes
from deepres.detection.batches import BoxBatch
from deepres.detection.trainer import DetectTrainer, optimizer_of
from deepres.detection.training import built
from deepres.training.distribute import DistributedContext
from deepres.training.heap import heap_kept
from deepres.training.speed import SPEEDS, Speed
from deepres.training.speed_trial import exactness

TUNED, COMPILED = "torchvision, tuned", "torchvision, tuned and compiled"
WIDTHS: dict[str, Any] = {
    "strides": (4, 8, 16, 32),
    "channels": 256,
    "width": 1024,
    "octaves": 1,
    "samples": REGIONS,
    "proposals": PROPOSALS,
}
Call = Callable[[], object]


def ours(folder: str, data: BoxData, **options: Any) -> DetectTrainer:
    run = run_of("resnet18", folder, 0).resolved()
    run = type(run)(**{**vars(run), "options": options})
    return DetectTrainer(run, data, DistributedContext(torch.device("cpu")), built(run, data))


def predict(model: nn.Module, batch: BoxBatch, speed: Speed) -> object:
    model.eval()
    with torch.inference_mode(), speed.autocast(torch.device("cpu")):
        return model(batch.images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled one")
    given = parser.parse_args()
    data = open_boxes(given.data)
    tuned = SPEEDS[SPEED]
    with exactness(tuned), heap_kept():
        trainers = {"deepres": ours(given.data, data), "deepres, torchvision's widths": ours(given.data, data, **WIDTHS)}
        batch = next(iter(trainers["deepres"].loader.epoch(0)))
        steps: dict[str, Call] = {}
        answers: dict[str, Call] = {}
        for name, trainer in trainers.items():
            steps[name] = partial(train, trainer, batch)
            answers[name] = partial(predict, trainer.model, batch, tuned)
        recipe = trainers["deepres"].recipe
        for name, speed in (("torchvision", SPEEDS["float32"]), (TUNED, tuned), (COMPILED, tuned)):
            if name == COMPILED and given.no_compile:
                continue
            model = torchvision_detector(len(data.classes), usual=name == "torchvision").to(memory_format=speed.layout).train()
            if name == COMPILED:
                model.backbone.compile()
            steps[name] = partial(train_peer, model, optimizer_of(model, recipe), batch, speed)
            answers[name] = partial(predict, model, batch, speed)
        for what, calls in (("training", steps), ("prediction", answers)):
            seconds = alternate(calls, repeats=given.turns, warm=2)
            best = min((name for name in (TUNED, COMPILED) if name in seconds), key=lambda one: statistics.median(seconds[one]))
            sentence = f"ResNet-18 with a feature pyramid at 320 pixels, {what} on batches of {len(batch.images)} photographs"
            record(f"detection-{what}", {"what": sentence, **summary(seconds, len(batch.images), best)})


def train(trainer: DetectTrainer, batch: BoxBatch) -> None:
    trainer.model.train()
    trainer.take_step(batch)


def train_peer(model: nn.Module, optimizer: torch.optim.Optimizer, batch: BoxBatch, speed: Speed) -> None:
    model.train()
    peer_step(model, optimizer, batch, 1e-5, speed)


if __name__ == "__main__":
    main()
