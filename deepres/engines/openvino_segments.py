"""A ghost in OpenVINO: its segments between early exits, each a graph of its own, in float32, bf16 or int8."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from deepres.data import Data
from deepres.engines.engine import Precision, Runner
from deepres.engines.exporters import save_openvino
from deepres.engines.int8 import CALIBRATION, Quantized, calibration_batches, check_rise, error_of, quantized_graph
from deepres.engines.openvino_runner import OpenVINORunner, core
from deepres.engines.segmenting import SegmentGraphs, graphs_of
from deepres.engines.source import Source
from deepres.errors import DeepresError
from deepres.ghosting import Ghost
from deepres.models.segmented import through_segments

_ABOUT = "segments.json"


class GhostRunner(Runner):
    """Runs the segments one after the other, each on the inputs that have not left.

    ``batch`` and ``precision`` are those of the segments, which ``runner`` runs. ``thresholds`` are compared between the segments, so
    setting others compiles nothing.
    """

    def __init__(
        self, graphs: SegmentGraphs, batch: int, precision: Precision, runner: type[OpenVINORunner] = OpenVINORunner
    ) -> None:
        super().__init__()
        self.graphs, self.thresholds = graphs, graphs.thresholds
        self.segments = [runner(one, batch, precision) for one in graphs.models]

    def forward(self, x: Tensor) -> Tensor:
        calls = [segment.run for segment in self.segments]
        answers, self.exited_at = through_segments(calls, self.graphs.exits, self.thresholds, x)
        return answers.float()

    def save(self, folder: Path) -> None:
        for number, segment in enumerate(self.segments):
            save_openvino(segment.model, _file(folder, number))
        (folder / _ABOUT).write_text(json.dumps(self.graphs.about))


def load_segments(folder: Path, ghost: Ghost) -> SegmentGraphs:
    """The segments that ``GhostRunner.save`` wrote, for ``ghost`` at its exit threshold.

    Raises ``DeepresError`` where the folder is of a ghost with other exits, or whose files cannot be read.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if about != graphs_of(ghost):
            raise DeepresError(
                f"{folder}: holds the engine of a ghost with other exits or other blocks; run deepres optimize again"
            )
        models = [core().read_model(_file(folder, number)) for number in range(len(about["exits"]) + 1)]
    except (OSError, ValueError, RuntimeError) as error:
        raise DeepresError(f"{folder}: holds no readable segments of a ghost ({error}); run deepres optimize again") from error
    return SegmentGraphs.with_models(ghost, models)


def _file(folder: Path, number: int) -> Path:
    return folder / f"segment-{number}.xml"


def quantize_ghost(source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
    """As ``quantize_openvino``, for a ghost: each segment is calibrated on the signals that it gets, of all calibration images.

    Where the error rises by more than ``error`` points, the segments return to bf16 one after another, the last one first: it decides
    the inputs that no exit was sure of. Raises ``ErrorRises`` where that does not suffice.
    """
    graphs = source.segments
    log("calibrating int8")
    carried = [[part] for part in calibration_batches(source, data, CALIBRATION)]
    models = []
    for model in graphs.models:
        models.append(quantized_graph(source, model, [tuple(value.numpy() for value in part) for part in carried]))
        runner = OpenVINORunner(model, None, "float32")
        carried = [runner.run(part)[2:] for part in carried]
    log("measuring the error of int8 on the validation split")
    batch = len(source.example)
    before = error_of(GhostRunner(graphs, batch, "float32"), data, batch)
    for kept in range(len(models)):
        mixed = (*models[: len(models) - kept], *graphs.models[len(models) - kept :])
        made = GhostRunner(replace(graphs, models=mixed), batch, "int8")
        after = error_of(made, data, batch)
        if after - before <= error:
            break
    check_rise(before, after, error, data)
    return Quantized(made, before, after, len(data.val), kept)
