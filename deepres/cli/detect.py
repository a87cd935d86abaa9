"""``deepres detect``: train, evaluate and predict with Faster R-CNN detectors."""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg, subcommand

from deepres.cli.common import check_out, counted, default_out, keywords, say
from deepres.cli.parsing import BuilderOption
from deepres.detection.options import DrawOptions, PassOptions
from deepres.detection.run import DetectRun
from deepres.errors import DeepresError
from deepres.options import DeviceOption


@dataclass(frozen=True, kw_only=True)
class BoxesOption:
    """The data of a command on detectors."""

    data: str  # a folder of images with boxes, as Pascal VOC, COCO or YOLO


@dataclass(frozen=True)
class DetectTrain(BuilderOption, DetectRun):
    """Train a detector on a folder of images with boxes. Under torchrun: torchrun --nproc-per-node 2 -m deepres detect train ..."""

    # A field of ``DetectRun`` is given anew only where the command line may leave it open.

    # the backbone: a name from `deepres nets`, timm:NAME, torchvision.models:NAME, a run or a file of weights
    net: str = "resnet18"
    data: str | None = None  # a folder of images with boxes, as Pascal VOC, COCO or YOLO; needed without --resume
    recipe: str | None = None  # small, finetune, paper-voc, paper-coco [finetune with pretrained weights, else small]
    out: str | None = None  # folder for weights, checkpoints, logs and report.html [runs/detect-NET-DATE]
    options: Suppress[dict[str, Any]] = dataclasses.field(default_factory=dict)
    resume: Path | None = None  # folder of a run to continue; of the other options only --device, --workers and --builder count
    survey: bool = False  # only look at the data: classes, box sizes and examples, in OUT/data.html

    def __post_init__(self) -> None:
        """Nothing is checked here: the command line may name a run instead of giving one. ``_run`` checks what comes of it."""

    def run(self) -> int:
        from deepres.data.detection import open_boxes
        from deepres.detection.page import detection_page, survey_page
        from deepres.detection.training import train_detector
        from deepres.training.distribute import is_first_process

        run = self._run()
        first = is_first_process()
        data = open_boxes(run.data, classes=run.classes or None, strict=run.strict)
        out = Path(str(run.out))
        if self.survey:
            if first:
                say(str(survey_page(data).write(out / "data.html")))
            return 0
        result = train_detector(run, resume=self.resume is not None, data=data)
        if first:
            say(f"\nThe data: {survey_page(data).write(out / 'data.html')}")
            page = detection_page(result.data, result.test, history=result.history, name=run.net).write(out / "report.html")
            test = result.test
            say(
                f"The whole: {page}\n{run.net}: mAP@.5 {100 * test.coco.ap50:.1f} %, mAP {100 * test.coco.ap:.1f} % on "
                f"{len(data.test)} test images, with the weights of epoch {result.best_epoch} (best on the validation images, mAP@.5 "
                f"{100 * result.val:.1f} %), {result.seconds:.0f} s\n{out}"
            )
        return 0

    def _run(self) -> DetectRun:
        if self.resume is not None:
            saved = DetectRun.read(self.resume)
            return dataclasses.replace(saved, out=str(self.resume), device=self.device, workers=self.workers)
        if self.data is None:
            raise DeepresError("which images? Give --data FOLDER, with boxes as Pascal VOC, COCO or YOLO")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(DetectRun)}
        out = self.out or default_out(f"detect-{Path(self.net).name}")
        return DetectRun(**{**values, "recipe": self.recipe or "auto", "out": str(out)})


def _opened(models: tuple[str, ...], device: str, passes: PassOptions | None = None) -> Any:
    """The detector, or several that answer together or see each image more than once."""
    from deepres.detection.combining import CombinedDetector
    from deepres.engines import ExportedDetector, open_detector
    from deepres.training.distribute import pick_device

    if not models:
        raise DeepresError("which detector? Give a run's folder or a file of `deepres detect train`")
    asked = keywords(passes or PassOptions(), PassOptions)
    if len(models) == 1 and asked["join"] != PassOptions.join:
        raise DeepresError(f"--join {asked['join']} is for several detectors that answer together; leave it out")
    loaded: list[Any] = [open_detector(model).to(pick_device(device)) for model in models]
    if len(loaded) == 1 and asked == keywords(PassOptions(), PassOptions):
        return loaded[0]
    for name, one in zip(models, loaded, strict=True):
        if isinstance(one, ExportedDetector):
            raise DeepresError(
                f"{name}: an exported detector answers alone and sees an image once, as it is; for several detectors, --scales, --flip "
                "and --refine give the run that it was made of"
            )
    return CombinedDetector(loaded, **asked).eval()


def _with_layers(model: str, device: str) -> Any:
    """The detector, to look into. Raises ``DeepresError`` for an exported one."""
    from deepres.engines import ExportedDetector

    found = _opened((model,), device)
    if isinstance(found, ExportedDetector):
        raise DeepresError(f"{model}: is an exported detector, in which no blocks are left; give the run that it was made of")
    return found


def _boxes(folder: str, classes: tuple[str, ...], splits: tuple[str, ...], *, strict: bool = False) -> Any:
    """The data, of which ``splits`` have images; their notes and the problems of their annotations go to standard error."""
    from deepres.data.detection import open_boxes
    from deepres.data.detection.opening import QUOTED_PROBLEMS, problem_report

    data = open_boxes(folder, classes=classes, strict=strict)
    for text in (*data.notes, problem_report(data, QUOTED_PROBLEMS)):
        if text:
            print(f"deepres: {text}", file=sys.stderr)
    for split in splits:
        if not getattr(data, split):
            raise DeepresError(f"{folder}: its {split} split has no images")
    return data


@dataclass(frozen=True, kw_only=True)
class DetectEvaluate(PassOptions, DeviceOption, BuilderOption, BoxesOption):
    """Measure a detector, or several that answer together, by the COCO and Pascal VOC protocols."""

    # one or more runs or files of detectors, which answer together
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="DETECTOR ...")] = ()
    split: Literal["train", "val", "test"] = "test"  # part of the data that is measured
    strict: bool = False  # stop at problems in annotations
    out: Path | None = None  # folder for report.html and scores.json [nothing is written]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.common import table
        from deepres.detection.measure import measure_detector
        from deepres.detection.page import class_table, detection_page

        check_out(self.out)
        model = _opened(self.models, self.device, self)
        classes = model.config.classes
        data = _boxes(self.data, classes, (self.split,), strict=self.strict)
        with counted("detecting") as progress:
            scores = measure_detector(model, getattr(data, self.split), classes, progress=progress)
        shown = class_table(scores)
        Console().print(table(shown.head, shown.rows))
        say(
            f"\nmAP@.5 {100 * scores.coco.ap50:.2f} %, mAP {100 * scores.coco.ap:.2f} % (COCO); VOC 2007 {100 * scores.voc07:.2f} %, "
            f"VOC 2012 {100 * scores.voc12:.2f} %; {len(getattr(data, self.split))} images, {scores.images_per_second:.1f} images/s"
        )
        if self.out is not None:
            page = detection_page(data, scores, split=self.split, name=Path(self.models[0]).name).write(
                self.out / "report.html"
            )
            (self.out / "scores.json").write_text(json.dumps(scores.to_dict(), indent=1))
            say(f"The whole: {page}")
        return 0


@dataclass(frozen=True, kw_only=True)
class DetectPredict(DrawOptions, PassOptions, DeviceOption, BuilderOption):
    """Detect objects in images. Exit code 1 if some could not be read."""

    model: Positional[str]  # a run or a file of a detector, or its ONNX file
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE ...")] = ()  # image files, or folders of them
    out: Path | None = None  # folder for pictures with boxes, detections.json and COCO results [only lines on the terminal]

    def run(self) -> int:
        from deepres.detection.predicting import detect_files, image_files, picture_paths, write_detections

        check_out(self.out)
        model = _opened((self.model,), self.device, self)
        files = image_files(self.images)
        if self.out is not None:
            picture_paths(files, self.out)  # raises before the work is done
        classes = model.config.classes
        answers, bad = [], 0
        for one in detect_files(model, files):
            if one.found is None:
                bad += 1
                print(f"deepres: skipped {one.error}", file=sys.stderr)
                continue
            answers.append(one)
            objects = [entry for entry in one.to_dict(classes)["objects"] if entry["confidence"] >= self.threshold]
            listed = ", ".join(f"{entry['class']} {entry['confidence']:.0%}" for entry in objects)
            say(f"{one.file}: {listed or 'nothing'}")
        if self.out is not None:
            with counted("drawing") as progress:
                say(str(write_detections(answers, classes, self.out, progress=progress, **keywords(self, DrawOptions))))
        return 1 if bad else 0


@dataclass(frozen=True, kw_only=True)
class DetectLook(DeviceOption, BuilderOption, BoxesOption):
    """Leave out each branch of a detector's network in turn, and measure what that costs in mAP."""

    model: Positional[str]  # a run or a file of a detector
    split: Literal["train", "val", "test"] = "val"  # part of the data that is looked at
    out: Path | None = None  # JSON file to write the figures to [only the table]

    def run(self) -> int:
        from rich.console import Console

        from deepres.cli.common import shares, table
        from deepres.detection.blocks import look_at_detector

        check_out(self.out.parent if self.out is not None else None)
        model = _with_layers(self.model, self.device)
        examples = getattr(_boxes(self.data, model.config.classes, (self.split,)), self.split)
        with shares("looking") as progress:
            found = look_at_detector(model, examples, progress=progress)
        rows = [
            [
                one.name,
                one.kind,
                *(("opens a stage", "") if one.reshapes else (f"{100 * one.ap50:.1f}", f"{100 * one.change:+.1f}")),
            ]
            for one in found.sites
        ]
        Console().print(table(("branch left out", "block", "mAP@.5, %", "change, points"), rows))
        say(f"\nThe whole detector: mAP@.5 {100 * found.ap50:.1f} % on {found.images} images")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(dataclasses.asdict(found), indent=1))
        return 0


@dataclass(frozen=True, kw_only=True)
class DetectShrink(DeviceOption, BuilderOption, BoxesOption):
    """Take blocks out of a detector's network for as long as its mAP on the validation images holds."""

    model: Positional[str]  # a run or a file of a detector
    out: Path  # file for the smaller detector, such as small.safetensors
    drop: float = 1.0  # points of mAP@.5 that may be lost

    def run(self) -> int:
        from deepres.detection import measure_detector, save_detector
        from deepres.detection.blocks import shrink_detector

        check_out(self.out.parent)
        model = _with_layers(self.model, self.device)
        data = _boxes(self.data, model.config.classes, ("val", "test"))
        result = shrink_detector(model, data.val, drop=self.drop / 100, log=say)
        save_detector(result.model, self.out, removed=list(result.removed))
        tested = [100 * measure_detector(one, data.test, data.classes).coco.ap50 for one in (model, result.model)]
        say(
            f"{len(result.removed)} blocks taken out; mAP@.5 {100 * result.before:.1f} -> {100 * result.after:.1f} % on the validation "
            f"images, {tested[0]:.1f} -> {tested[1]:.1f} % on the test images; {result.params[0]:,} -> {result.params[1]:,} parameters; "
            f"the backbone takes {100 * result.time:.0f} % of its time\n{self.out}"
        )
        return 0


Detect = (
    Annotated[DetectTrain, subcommand("train")]
    | Annotated[DetectEvaluate, subcommand("evaluate")]
    | Annotated[DetectPredict, subcommand("predict")]
    | Annotated[DetectLook, subcommand("look")]
    | Annotated[DetectShrink, subcommand("shrink")]
)
