"""Detectors of 18 layers without pretrained weights on few photographs: ours, plain, and torchvision's, in the same training time.

``python -m benchmarks.detection --data FOLDER --minutes 60 --seeds 3`` trains every candidate with every seed and writes a row after
each, so that it goes on where it was stopped. torchvision's detector is its own builder's, at the same image size, precision and
augmentation, with the same optimizer and averaged weights. ``--times`` measures steps and predictions in alternating turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.common import RESULTS, SPEED, alternate, machine
from deepres.data.detection import BoxData, open_boxes
from deepres.detection import DetectRun, measure_detector, train_detector
from deepres.detection.batches import BoxBatch, BoxLoader
from deepres.detection.recipe import DetectRecipe
from deepres.detection.trainer import DetectTrainer, optimizer_of, rising_average
from deepres.detection.training import built
from deepres.training.distribute import DistributedContext
from deepres.training.heap import heap_kept
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness

FILE = RESULTS / "detection.json"
SIZE, LONGEST = 240, 320
WARM, TIMED = 3, 8  # steps
NETS = {"deepres resnet18": "resnet18", "deepres plain18": "plain18"}


def run_of(net: str, data: str, seed: int, epochs: float = 1.0) -> DetectRun:
    return DetectRun(net, data, recipe="small", epochs=epochs, flips="hv", seed=seed, speed=SPEED, size=SIZE)


def trainer_of(net: str, folder: str, data: BoxData, seed: int) -> DetectTrainer:
    run = run_of(net, folder, seed).resolved()
    return DetectTrainer(run, data, DistributedContext(torch.device("cpu")), built(run, data))


def torchvision_detector(classes: int, *, usual: bool) -> FasterRCNN:
    """torchvision's parts as its builder puts them together; ``usual`` keeps its numbers of regions, else ours are used."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    fewer: dict[str, Any] = {
        "box_batch_size_per_image": 128,
        "rpn_pre_nms_top_n_train": 500,
        "rpn_post_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 200,
    }
    return FasterRCNN(backbone, classes + 1, min_size=SIZE, max_size=LONGEST, **({} if usual else fewer))


def batches(loader: BoxLoader) -> Iterator[tuple[int, BoxBatch]]:
    """(epoch, batch) without end."""
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield epoch, batch
        epoch += 1


def peer_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: BoxBatch, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with SPEEDS[SPEED].autocast(torch.device("cpu")):
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


def train_peer(data: BoxData, seed: int, minutes: float, recipe: DetectRecipe) -> dict[str, Any]:
    """Train torchvision's detector for ``minutes``, validation included; the best epoch on the validation images is tested."""
    torch.manual_seed(seed)
    model = torchvision_detector(len(data.classes), usual=False).to(memory_format=SPEEDS[SPEED].layout).train()
    optimizer = optimizer_of(model, recipe)
    averaged = AveragedModel(model, multi_avg_fn=rising_average(recipe.ema), use_buffers=True)
    loader = BoxLoader(data.train, recipe, (SIZE, LONGEST), seed=seed)
    best, best_state, images, now = -1.0, None, 0, 0
    began = time.perf_counter()
    for epoch, batch in batches(loader):
        share = (time.perf_counter() - began) / (60 * minutes)
        if epoch > now or share >= 1:
            now = epoch
            val = measure_detector(averaged.module, data.val, data.classes, speed=SPEEDS[SPEED]).coco.ap50
            if val > best:
                best, best_state = val, {name: tensor.clone() for name, tensor in averaged.module.state_dict().items()}
            model.train()
            share = (time.perf_counter() - began) / (60 * minutes)
        if share >= 1:
            break
        peer_step(model, optimizer, batch, recipe.rate(share))
        averaged.update_parameters(model)
        images += batch.total
    seconds = time.perf_counter() - began
    assert best_state is not None
    averaged.module.load_state_dict(best_state)
    test = measure_detector(averaged.module, data.test, data.classes, speed=SPEEDS[SPEED])
    return {"val": best, "test": test.to_dict(), "seconds": seconds, "epochs": images / len(data.train)}


def train_ours(net: str, folder: str, data: BoxData, seed: int, minutes: float) -> dict[str, Any]:
    """As many epochs as fit into ``minutes``, by the time of a few steps and of one validation."""
    trainer = trainer_of(net, folder, data, seed)
    seconds = []
    trainer.model.train()
    for _, batch in batches(trainer.loader):
        began = time.perf_counter()
        trainer.take_step(batch)
        seconds.append(time.perf_counter() - began)
        if len(seconds) == WARM + TIMED:
            break
    began = time.perf_counter()
    trainer.measure(data.val[:16])
    validation = (time.perf_counter() - began) * len(data.val) / 16
    epoch = statistics.median(seconds[WARM:]) * trainer.loader.steps + validation
    result = train_detector(run_of(net, folder, seed, max(1, int(60 * minutes / epoch))), data=data, show=True)
    return {"val": result.val, "test": result.test.to_dict(), "seconds": result.seconds, "epochs": len(result.history)}


def times(folder: str, data: BoxData) -> dict[str, Any]:
    """Images a second in training and in prediction, in alternating turns: ours, and torchvision's as usual and tuned."""
    ours = trainer_of("resnet18", folder, data, 0)
    batch = next(iter(ours.loader.epoch(0)))
    images = batch.images
    steps: dict[str, Callable[[], object]] = {"deepres": lambda: ours.take_step(batch)}
    answers: dict[str, Callable[[], object]] = {"deepres": _predictor(ours.model, images)}
    ours.model.train()
    for name, usual in (("torchvision", True), ("torchvision, tuned", False)):
        model = torchvision_detector(len(data.classes), usual=usual).to(memory_format=SPEEDS[SPEED].layout).train()
        optimizer = optimizer_of(model, ours.recipe)
        steps[name] = lambda model=model, optimizer=optimizer: peer_step(model, optimizer, batch, 1e-5)  # type: ignore[misc]
        answers[name] = _predictor(model, images)
    found = {}
    for what, calls in (("training", steps), ("prediction", answers)):
        seconds = alternate(calls, repeats=TIMED, warm=1)
        found[what] = {name: len(images) / statistics.median(values) for name, values in seconds.items()}
    return found


def _predictor(model: nn.Module, images: list[Tensor]) -> Callable[[], object]:
    def call() -> object:
        model.eval()
        with torch.inference_mode(), SPEEDS[SPEED].autocast(torch.device("cpu")):
            found = model(images)
        model.train()
        return found

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--times", action="store_true", help="only measure times")
    given = parser.parse_args()
    data = open_boxes(given.data)
    done: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}}

    def keep() -> None:
        FILE.write_text(json.dumps({**done, "machine": machine(), "minutes": given.minutes, "size": [SIZE, LONGEST]}, indent=1))

    with exactness(SPEEDS[SPEED]), heap_kept():
        done["images_per_second"] = times(given.data, data)
        keep()
        print(json.dumps(done["images_per_second"], indent=1))
        if given.times:
            return
        recipe = run_of("resnet18", given.data, 0).recipe
        assert isinstance(recipe, DetectRecipe)
        for seed in range(given.seeds):
            for name in (*NETS, "torchvision, tuned"):
                if f"{name}, seed {seed}" in done["rows"]:
                    continue
                if name in NETS:
                    row = train_ours(NETS[name], given.data, data, seed, given.minutes)
                else:
                    row = train_peer(data, seed, given.minutes, dataclasses.replace(recipe))
                done["rows"][f"{name}, seed {seed}"] = row
                keep()
                print(f"{name}, seed {seed}: test mAP@.5 {100 * row['test']['coco']['ap50']:.1f} %", flush=True)


if __name__ == "__main__":
    Path(RESULTS).mkdir(exist_ok=True)
    main()
