"""``train_detector``: epochs until the run is done, the best on the validation images, then one test."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepres.data.detection import BoxData, open_boxes
from deepres.detection.faster_rcnn import Detector, detector
from deepres.detection.measure import DetectionScores
from deepres.detection.reporter import DetectRecord, DetectReporter
from deepres.detection.run import DetectRun
from deepres.detection.trainer import DetectTrainer, common_canvas
from deepres.errors import DeepresError
from deepres.training import checkpoint
from deepres.training.distribute import DistributedContext, join_processes
from deepres.training.epoch import between_steps
from deepres.training.folder import claim_folder, leave_folder
from deepres.training.heap import heap_kept
from deepres.training.progress import peak_memory, read_log
from deepres.training.speed import SPEEDS
from deepres.training.speed_trial import exactness
from deepres.training.stopping import stoppable

RESULT_FILE = "result.json"


@dataclass(frozen=True, eq=False)
class DetectResult:
    """Result of ``train_detector``. The test images were used once, after everything had been chosen."""

    run: DetectRun
    model: Detector  # with the weights of the best epoch, in eval mode
    data: BoxData
    history: list[DetectRecord]
    best_epoch: int
    val: float  # AP at IoU 0.5 of the best epoch on the validation images
    test: DetectionScores
    seconds: float  # of training, validation included
    out: Path | None


def train_detector(
    run: DetectRun, *, resume: bool = False, show: bool = True, data: BoxData | None = None, model: Detector | None = None
) -> DetectResult:
    """Train a detector as ``run`` says.

    >>> result = train_detector(DetectRun("resnet18", "bccd-voc", out="runs/cells"))
    >>> result.test.voc12

    ``resume`` continues from the newest checkpoint in ``run.out``, in mid-epoch if need be. ``data`` and ``model`` stand in for
    those that ``run`` names. Under ``torchrun`` all processes call this alike.

    Raises ``DeepresError`` for what cannot be trained, ``NonFinite`` before a step that would ruin the weights, and
    ``Interrupted`` after Ctrl-C or SIGTERM, once the run is saved.
    """
    with join_processes(run.device) as context:
        run = dataclasses.replace(run, out=context.broadcast(run.out)).resolved()
        if data is None:
            data = open_boxes(run.data, classes=run.classes or None, strict=run.strict)
        if not data.train:
            raise DeepresError(f"{run.data}: there are no training images")
        if model is None:
            model = built(run, data)
        out = Path(run.out) if run.out else None
        made = claim_folder(out, run, resume) if out is not None and context.is_main else []
        context.barrier()
        try:
            return _begun(run, data, context, model, resume=resume, show=show)
        except DeepresError:
            if out is not None and context.is_main:
                leave_folder(out, made)
            raise


def _begun(
    run: DetectRun, data: BoxData, context: DistributedContext, model: Detector, *, resume: bool, show: bool
) -> DetectResult:
    """Train in the run's folder, from its newest checkpoint if ``resume``."""
    out = Path(run.out) if run.out else None
    state = checkpoint.read_newest(out / checkpoint.FOLDER, context.device) if resume and out else None
    if state is not None and run.speed == "auto":
        run = dataclasses.replace(run, speed=state["speed"])
    with exactness(SPEEDS.get(run.speed, SPEEDS["float32"])):
        trainer = DetectTrainer(run, data, context, model)
        if state is not None:
            trainer.restore(state)
        context.broadcast_weights(trainer.model)
        with heap_kept(), stoppable() as stop, DetectReporter(trainer, show=show) as reporter:
            return _train(trainer, reporter, stop, resumed=state is not None)


def resume_detector(out: str | Path, *, show: bool = True, **changes: Any) -> DetectResult:
    """Continue the run in a folder with the settings saved there. ``changes``: fields that may differ, such as ``device``."""
    return train_detector(dataclasses.replace(DetectRun.read(out), out=str(out), **changes), resume=True, show=show)


def built(run: DetectRun, data: BoxData) -> Detector:
    """The detector of ``run`` for the classes of ``data``, initialised by the run's seed."""
    torch.manual_seed(run.seed)
    options = run.detector_options()
    if "canvas" not in options:
        options["canvas"] = common_canvas(data, options.get("size", 800), options.get("longest", 1333))
    net_options = {"width": run.width} if run.width != 1 else {}
    return detector(run.net, data.classes, run.form, weights=run.weights, net_options=net_options, **options)


def _train(trainer: DetectTrainer, reporter: DetectReporter, stop: threading.Event, *, resumed: bool) -> DetectResult:
    out, done = trainer.out, trainer.progress.done
    history = [DetectRecord(**line) for line in read_log(out) if line["step"] <= done] if out and resumed else []
    # a step that is counted but not its epoch: the run was interrupted before its last validation
    while trainer.progress.done < trainer.total or trainer.progress.step:
        _train_epoch(trainer, reporter, stop)
        history.append(_finish_epoch(trainer, reporter))
    final = trainer.load_best().eval()
    test = trainer.measure(trainer.data.test)
    progress, data = trainer.progress, trainer.data
    if out is not None and trainer.context.is_main:
        summary = {
            "best_epoch": progress.best_epoch,
            "val_ap50": None if math.isnan(progress.best) else progress.best,
            "seconds": progress.seconds,
            "speed": trainer.speed.name,
            "torch": torch.__version__,
            "test": test.to_dict(),
            "test_images": len(data.test),
            "problems": data.problem_counts(),
            "remarks": list(trainer.model.remarks),
        }
        (out / RESULT_FILE).write_text(json.dumps(summary, indent=1))
    trainer.context.barrier()
    return DetectResult(trainer.run, final, data, history, progress.best_epoch, progress.best, test, progress.seconds, out)


def _train_epoch(trainer: DetectTrainer, reporter: DetectReporter, stop: threading.Event) -> None:
    """Take the steps from where the run is to the end of the epoch, or of the run."""
    progress = trainer.progress
    trainer.model.train()
    if progress.done >= trainer.total:
        return
    saved = before = time.perf_counter()
    for batch in trainer.loader.epoch(progress.epoch, progress.step):
        trainer.take_step(batch)
        now = time.perf_counter()
        progress.seconds += now - before
        reporter.stepped(batch, now - before)
        before = now
        saved = between_steps(trainer, stop, saved)
        if progress.done >= trainer.total:
            break


def _finish_epoch(trainer: DetectTrainer, reporter: DetectReporter) -> DetectRecord:
    """Validate, keep the weights if they are the best so far, log, write a checkpoint."""
    progress = trainer.progress
    began = time.perf_counter()
    val = trainer.measure(trainer.data.val)
    progress.seconds += time.perf_counter() - began
    losses = {name: value / progress.step for name, value in progress.sums.items()}
    progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
    record = DetectRecord(
        epoch=progress.epoch,
        step=progress.done,
        lr=trainer.optimizer.param_groups[0]["lr"],
        losses=losses,
        ap=val.coco.ap,
        ap50=val.coco.ap50,
        voc07=val.voc07,
        images_per_second=reporter.rate,
        memory=peak_memory(trainer.context.device),
        seconds=progress.seconds,
    )
    if not val.coco.ap50 <= progress.best:  # the last epoch, where the validation images hold nothing to find and it is NaN
        progress.best, progress.best_epoch = val.coco.ap50, progress.epoch
        trainer.keep_best()
    reporter.epoch_done(record, val)
    trainer.checkpoint()
    return record
