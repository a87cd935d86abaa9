"""A ghost in exported files: one file for each segment, which the inputs pass until an exit is confident enough of its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.models.exported import RUNNER, ExportedModel, LoadedFile, open_file


class SegmentedModel(ExportedModel):
    """The ghost in a folder of segments, called like the original: inputs (N, ...) on the CPU -> logits (N, K).

    Made by ``open_exported``. A segment gives the logits and confidences of its exit, and what the next segment takes; inputs whose
    confidence reaches the threshold leave with these logits. ``exited_at`` (N,) is the exit of each input of the last call, as a
    ghost's trace counts them, and -1 for those that passed all segments; ``depth`` (N,) is the share of the ghost's blocks that ran.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[LoadedFile],
        header: Mapping[str, str],
        exits: Sequence[int],
        threshold: float,
        depths: Sequence[float],
    ) -> None:
        super().__init__(path, files, header)
        self.exits, self.threshold = tuple(exits), threshold
        self.depths = dict(zip((*exits, -1), depths, strict=True))  # share of the blocks that ran, by the exit
        self.exited_at = torch.empty(0, dtype=torch.int64)

    @property
    def depth(self) -> Tensor:
        return torch.tensor([self.depths[number] for number in self.exited_at.tolist()])

    def forward(self, inputs: Tensor) -> Tensor:
        calls, thresholds = [file.call for file in self.files], [self.threshold] * len(self.exits)
        answers, self.exited_at = through_segments(calls, self.exits, thresholds, inputs)
        return answers


def through_segments(
    calls: Sequence[Callable[[Sequence[Tensor]], list[Tensor]]],
    exits: Sequence[int],
    thresholds: Sequence[float],
    inputs: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute a ghost by the ``calls`` of its segments: (logits (N, K), ``exited_at`` (N,) as of ``SegmentedModel``).

    A call takes what the segment before gave besides logits (N, K) and confidence (N,); the last one gives logits alone. ``exits`` are
    the numbers of the others' exits, and inputs leave from a confidence of ``thresholds`` on, one for each exit.
    """
    rows, carried = torch.arange(len(inputs)), [inputs]
    exited_at = torch.full((len(inputs),), -1)
    answers: Tensor | None = None
    for call, number, threshold in zip(calls, (*exits, -1), (*thresholds, 0.0), strict=True):
        logits, *more = call(carried)
        if number < 0:
            if len(rows) == len(inputs):
                return logits, exited_at
            assert answers is not None
            answers[rows] = logits
            break
        confidence, *carried = more
        leaves = confidence >= threshold
        left = int(leaves.sum())
        if left == len(inputs):
            return logits, exited_at.fill_(number)
        if left:
            answers = logits.new_zeros(len(inputs), logits.shape[1]) if answers is None else answers
            answers[rows[leaves]] = logits[leaves]
            exited_at[rows[leaves]] = number
            if left == len(rows):
                break
            rows, carried = rows[~leaves], [value[~leaves] for value in carried]
    assert answers is not None
    return answers, exited_at


def open_exported(path: str | Path, *, trust: bool = False) -> ExportedModel:
    """Open an exported network in its engine, in float32 on the CPU: an ONNX file, an OpenVINO ``.xml``, a ``.pt2`` archive, or a
    ghost's folder of such segments.

    ``trust``: a ``.pt2`` archive may run any code when it is loaded (AOTInductor's is machine code), so it has to be asked for.

    Raises ``DeepresError`` as ``open_file`` does, and for a folder of which a file is missing or was exchanged.
    """
    path = Path(path)
    if not path.is_dir():
        file = open_file(path, trust=trust)
        if file.header.get("task") == "detection":
            raise DeepresError(f"{path}: holds a detector, which `deepres detect predict` and `deepres detect evaluate` run")
        return ExportedModel(path, [file], file.header)
    about = _read(path / RUNNER)
    files = [open_file(path / one["file"], trust=trust) for one in about["segments"]]
    for file, one in zip(files, about["segments"], strict=True):
        if file.header.get("sha256") != one["sha256"]:
            raise DeepresError(f"{path / one['file']}: is not the segment that was exported with this folder; export it again")
    exits = [int(one["exit"]) for one in about["segments"][:-1]]
    depths = [float(one.get("depth", 1.0)) for one in about["segments"]]  # folders of earlier versions do not say
    return SegmentedModel(path, files, files[-1].header, exits, float(about["threshold"]), depths)


def write_runner(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a runner has to know of a folder of segments, with a checksum."""
    (folder / RUNNER).write_text(json.dumps({**about, "sha256": _digest(about)}, indent=1) + "\n")


def _digest(about: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()}"


def _read(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        noted = about.pop("sha256")
    except OSError as error:
        raise DeepresError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DeepresError(f"{path}: is damaged; export the ghost again") from error
    if noted != _digest(about):
        raise DeepresError(f"{path}: was changed after it was exported (its checksum differs); export it again")
    return about
