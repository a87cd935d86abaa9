"""Display and logs of a detector's run: a bar with the time left, JSON lines, TensorBoard with example pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from deepres.data.detection.opening import problem_report
from deepres.detection.batches import BoxBatch
from deepres.detection.drawing import drawn
from deepres.detection.measure import DetectionScores
from deepres.training.display import RunDisplay
from deepres.training.progress import peak_memory

if TYPE_CHECKING:
    from deepres.detection.trainer import DetectTrainer

PICTURES = 4  # validation images that TensorBoard shows, with their boxes
NAMED = 5  # problems of annotations that are quoted


@dataclass(frozen=True)
class DetectRecord:
    """Figures of one epoch. Average precisions are shares in 0..1, on the validation images; times in seconds."""

    epoch: int  # epochs behind
    step: int  # steps behind
    lr: float
    losses: dict[str, float]  # means over the epoch, by name; the gradient's norm among them
    ap: float
    ap50: float
    voc07: float
    images_per_second: float
    memory: int  # peak so far of this process, or on its GPU, bytes
    seconds: float  # of the run so far, earlier parts included

    @property
    def loss(self) -> float:
        return sum(value for name, value in self.losses.items() if name != "gradient_norm")

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:3d}  loss {self.loss:.4f}  mAP@.5 {100 * self.ap50:5.1f} %  mAP {100 * self.ap:5.1f} %"
            f"  lr {self.lr:<7.2g}  {self.images_per_second:.2f} images/s"
        )


class DetectReporter:
    """A context that shows a run on the terminal if ``show``, and logs it in the run's folder; the main process alone does either."""

    def __init__(self, trainer: DetectTrainer, *, show: bool) -> None:
        self.trainer = trainer
        main = trainer.context.is_main
        self.display = RunDisplay(trainer.out if main else None, show=show and main)
        self.seconds, self.images = 0.0, 0

    @property
    def rate(self) -> float:
        """Images a second of the present epoch; 0 before the first step."""
        return self.images / self.seconds if self.seconds else 0.0

    def __enter__(self) -> DetectReporter:
        trainer, done = self.trainer, self.trainer.progress.done
        self.display.rewind(done)
        self.display.line(str(trainer.data))
        for line in (problem_report(trainer.data, NAMED), *trainer.data.notes, *trainer.model.remarks):
            if line:
                self.display.line(line)
        context = trainer.context
        where = f"{context.device}" + (f" x {context.world} processes" if context.world > 1 else "")
        config = trainer.model.config
        self.display.line(
            f"Faster R-CNN ({config.form}) on {trainer.run.net}, {config.size} to {config.longest} pixels, recipe "
            f"{trainer.recipe.name}, {trainer.total} steps of {trainer.loader.batch} images, {trainer.speed.name}, {where}"
        )
        if done:
            self.display.line(f"resumed after step {done}")
        self.display.start(f"{trainer.run.net} on {trainer.data.name}", trainer.total, done)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.display.close()

    def stepped(self, batch: BoxBatch, seconds: float) -> None:
        self.seconds += seconds
        self.images += batch.total
        if self.display.has_bar:
            now = f"{self.rate:.2f} images/s  {peak_memory(self.trainer.context.device) / 2**30:.1f} GiB"
            self.display.advance(self.trainer.progress.done, now)

    def epoch_done(self, record: DetectRecord, val: DetectionScores) -> None:
        self.display.line(str(record))
        self.display.record(asdict(record))
        self.seconds, self.images = 0.0, 0
        if self.display.out is None:
            return
        board = self.display.board(self.display.out, record.epoch)
        values = {key: value for key, value in asdict(record).items() if key not in ("epoch", "step", "losses")}
        for name, value in {**values, **record.losses, "loss": record.loss}.items():
            board.add_scalar(name, value, record.epoch)
        for place, example in enumerate(self.trainer.data.val[:PICTURES]):
            picture = drawn(example.path, val.found[place], self.trainer.data.classes, threshold=0.5)
            board.add_image(f"validation/{place + 1}", picture, record.epoch, dataformats="HWC")
