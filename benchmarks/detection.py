"""Detectors without pretrained weights on few photographs: ours on several backbones, and torchvision's, in the same training time.

    OMP_NUM_THREADS=1 python -m benchmarks.detection --data ../shared/data/bccd-voc --minutes 20 --seeds 3 --ground FOLDER

Each arm is trained with every seed. The time of a training is the processor's, divided by the number of threads, so that other
programs on the machine take none of it. A row is added to ``benchmarks/results/detection-NAME.json`` as its arm ends, and what is there
is not trained again; a stopped arm goes on from its last checkpoint in GROUND. torchvision's detector is its own builder's, with the
optimizer, the averaged weights, the augmentation, the image size, the numbers of regions and the precision of ours.
``python -m benchmarks.detection_speed`` measures images per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.common import RESULTS, SPEED, machine, record
from deepres.data.detection import BoxData, open_boxes
from deepres.detection import DetectRun, measure_detector, resume_detector, train_detector
from deepres.detection.batches import BoxBatch, BoxLoader
from deepres.detection.recipe import DetectRecipe
from deepres.detection.trainer import DetectTrainer, optimizer_of, rising_average
from deepres.detection.training import built
from deepres.training.distribute import DistributedContext
from deepres.training.heap import heap_kept
from deepres.training.speed import SPEEDS, Speed
from deepres.training.speed_trial import exactness

SIZE, LONGEST = 240, 320
REGIONS = 128  # that a training step learns from, of an image
PROPOSALS = (500, 200)
WARM, TIMED = 2, 6  # steps
PEER = "torchvision"
# name -> fields of ``DetectRun``
ARMS: dict[str, dict[str, Any]] = {
    "resnet18": {"net": "resnet18"},
    "plain18": {"net": "plain18"},
    "efficientnet-lite0": {"net": "efficientnet-lite0"},  # with the weights that its package brings
    "vgg16": {"net": "torchvision.models:vgg16", "form": "c4"},
    "resnet18-context": {"net": "resnet18", "context": True},
}


def clock() -> float:
    """Seconds of processor time that a thread of this program has had; behind a GPU, where the processor waits, of the day."""
    if torch.cuda.is_available():
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def run_of(arm: str, data: str, seed: int, epochs: float = 1.0, out: Path | None = None) -> DetectRun:
    where = str(out) if out else None
    return DetectRun(
        data=data, recipe="small", epochs=epochs, flips="hv", seed=seed, speed=SPEED, size=SIZE, out=where, **ARMS[arm]
    )


def trainer_of(arm: str, folder: str, data: BoxData, seed: int) -> DetectTrainer:
    run = run_of(arm, folder, seed).resolved()
    return DetectTrainer(run, data, DistributedContext(torch.device("cpu")), built(run, data))


def torchvision_detector(classes: int, *, usual: bool) -> FasterRCNN:
    """torchvision's parts as its builder puts them together; ``usual`` keeps its numbers of regions, else ours are used."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    fewer: dict[str, Any] = {
        "box_batch_size_per_image": REGIONS,
        "rpn_pre_nms_top_n_train": PROPOSALS[0],
        "rpn_post_nms_top_n_train": PROPOSALS[0],
        "rpn_pre_nms_top_n_test": PROPOSALS[1],
        "rpn_post_nms_top_n_test": PROPOSALS[1],
    }
    return FasterRCNN(backbone, classes + 1, min_size=SIZE, max_size=LONGEST, **({} if usual else fewer))


def batches(loader: BoxLoader, epoch: int = 0) -> Iterator[tuple[int, BoxBatch]]:
    """(epoch, batch) without end."""
    while True:
        for batch in loader.epoch(epoch):
            yield epoch, batch
        epoch += 1


def peer_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: BoxBatch, rate: float, speed: Speed) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with speed.autocast(torch.device("cpu")):
        losses: dict[str, Tensor] = model(batch.images, batch.targets)
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


class PeerTraining:
    """torchvision's detector in a loop of its own, with a checkpoint after each epoch."""

    def __init__(self, data: BoxData, seed: int, recipe: DetectRecipe, file: Path) -> None:
        torch.manual_seed(seed)
        self.data, self.recipe, self.file, self.speed = data, recipe, file, SPEEDS[SPEED]
        self.model = torchvision_detector(len(data.classes), usual=False).to(memory_format=self.speed.layout).train()
        self.optimizer = optimizer_of(self.model, recipe)
        self.averaged = AveragedModel(self.model, multi_avg_fn=rising_average(recipe.ema), use_buffers=True)
        self.loader = BoxLoader(data.train, recipe, (SIZE, LONGEST), seed=seed)
        self.best, self.images, self.epoch, self.seconds = -1.0, 0, 0, 0.0
        self.best_state: dict[str, Tensor] = {}
        if file.exists():
            saved = torch.load(file, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.averaged.load_state_dict(saved["averaged"])
            for name in ("best", "best_state", "images", "epoch", "seconds"):
                setattr(self, name, saved[name])

    def save(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "averaged")}
        parts |= {name: getattr(self, name) for name in ("best", "best_state", "images", "epoch", "seconds")}
        torch.save(parts, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").rename(self.file)

    def train(self, minutes: float) -> dict[str, Any]:
        """Train for ``minutes``, validation included; the best epoch on the validation images is tested."""
        before = clock()

        def share() -> float:
            nonlocal before
            now = clock()
            self.seconds, before = self.seconds + now - before, now
            return self.seconds / (60 * minutes)

        for epoch, batch in batches(self.loader, self.epoch):
            if epoch > self.epoch or share() >= 1:
                self.epoch = epoch
                self.validate()
                share()
                self.save()
            if share() >= 1:
                break
            peer_step(self.model, self.optimizer, batch, self.recipe.rate(min(1.0, share())), self.speed)
            self.averaged.update_parameters(self.model)
            self.images += batch.total
        self.averaged.module.load_state_dict(self.best_state)
        test = measure_detector(self.averaged.module, self.data.test, self.data.classes, speed=self.speed)
        epochs = self.images / len(self.data.train)
        return {"val": self.best, "test": test.to_dict(), "seconds": self.seconds, "epochs": epochs}

    def validate(self) -> None:
        val = measure_detector(self.averaged.module, self.data.val, self.data.classes, speed=self.speed).coco.ap50
        if val > self.best:
            self.best = val
            self.best_state = {name: tensor.clone() for name, tensor in self.averaged.module.state_dict().items()}
        self.model.train()


def train_ours(arm: str, folder: str, data: BoxData, seed: int, minutes: float, out: Path) -> dict[str, Any]:
    """As many epochs as fit into ``minutes``, by the time of a few steps and of one validation; a stopped run goes on."""
    began = clock()
    if (out / "run.json").exists():
        result = resume_detector(out)
    else:
        epochs = max(1, int(60 * minutes / _epoch_seconds(arm, folder, data, seed)))
        result = train_detector(run_of(arm, folder, seed, epochs, out), data=data, show=True)
    row = {"val": result.val, "test": result.test.to_dict(), "seconds": clock() - began, "epochs": len(result.history)}
    return {**row, "best_epoch": result.best_epoch}


def _epoch_seconds(arm: str, folder: str, data: BoxData, seed: int) -> float:
    trainer = trainer_of(arm, folder, data, seed)
    seconds = []
    trainer.model.train()
    for _, batch in batches(trainer.loader):
        began = clock()
        trainer.take_step(batch)
        seconds.append(clock() - began)
        if len(seconds) == WARM + TIMED:
            break
    began = clock()
    trainer.measure(data.val[:16])
    validation = (clock() - began) * len(data.val) / min(16, len(data.val))
    return statistics.median(seconds[WARM:]) * trainer.loader.steps + validation


def summarised(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of each arm's mAP@.5 on the test images, %."""
    found: dict[str, Any] = {}
    for arm in (*ARMS, PEER):
        values = [100 * row["test"]["coco"]["ap50"] for key, row in sorted(rows.items()) if key.rpartition("-seed")[0] == arm]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            found[arm] = {"n": len(values), "test_ap50_percent": statistics.mean(values), "deviation": spread, "seeds": values}
    return found


def train_arm(arm: str, folder: str, data: BoxData, seed: int, minutes: float, work: Path) -> dict[str, Any]:
    if arm != PEER:
        return train_ours(arm, folder, data, seed, minutes, work)
    recipe = run_of("resnet18", folder, seed).recipe
    assert isinstance(recipe, DetectRecipe)
    return PeerTraining(data, seed, recipe, work.with_suffix(".pt")).train(minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, validation included, for each thread")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, PEER], default=["resnet18", "plain18", PEER])
    parser.add_argument("--ground", type=Path, required=True, help="folder for runs and checkpoints")
    parser.add_argument("--name", default="bccd", help="of the result, detection-NAME.json")
    given = parser.parse_args()
    given.ground.mkdir(parents=True, exist_ok=True)
    data, path = open_boxes(given.data), RESULTS / f"detection-{given.name}.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    if other := {row["minutes"] for row in rows.values()} - {given.minutes}:
        parser.error(f"{path} holds rows of {other.pop():g} minutes; give them with --minutes, or another --name")
    threads = torch.get_num_threads()
    what = f"test mAP@.5 of detectors trained for {given.minutes:g} minutes on {threads} threads at {LONGEST} pixels on {data}"
    with exactness(SPEEDS[SPEED]), heap_kept():
        for seed in range(given.seeds):  # every arm's first seed comes before the second ones
            for arm in given.arms:
                key = f"{arm}-seed{seed}"
                if key in rows:
                    continue
                row = train_arm(arm, given.data, data, seed, given.minutes, given.ground / key)
                rows[key] = {**row, "minutes": given.minutes, "machine": machine()}
                record(f"detection-{given.name}", {"what": what, **summarised(rows), "rows": rows})


if __name__ == "__main__":
    main()
