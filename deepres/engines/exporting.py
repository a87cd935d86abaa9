"""``export``: a trained network as a file of another engine, checked there against the original before it is kept."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from deepres import __version__
from deepres.adapters import logits_of, on_cpu
from deepres.data import Data, Loader, Prepare, Tokens, seeded
from deepres.engines import exporters
from deepres.engines.options import ExportOptions
from deepres.engines.segmenting import capture_segments, check_segments, used_exits
from deepres.errors import DeepresError, nearest
from deepres.ghosting import Ghost, is_ghost, load_ghost
from deepres.models import OpenedModel, annotate, data_for, open_exported, open_trained
from deepres.models.exported import RUNNER, ExportedModel, open_file, weights_beside
from deepres.models.options import OpenOptions
from deepres.models.segmented import SegmentedModel, write_runner

ExportTarget = Literal["onnx", "openvino", "torch-export", "aoti"]
SUFFIX: dict[ExportTarget, str] = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2"}
OPSETS = range(18, 24)  # that torch.onnx writes
_EXAMPLES = 32
_TOLERANCE = 1e-3  # of the largest logit: float32 engines differ by their order of summation, a wrong graph by far more


@dataclass(frozen=True)
class ExportResult:
    """Result of ``export``: the file, and how its answers compare with the original's."""

    path: Path
    to: ExportTarget
    engine: str  # that loaded the file again, with its version
    source: str  # of the inputs that were compared
    examples: int  # inputs compared
    difference: float  # the largest of any logit
    largest: float  # the largest absolute logit of the original, for scale
    changed: int  # inputs whose best class is another
    bytes: int  # of all files together
    exits: tuple[int, int] | None = None  # of a ghost with exits: inputs that left early, and those that left at another exit

    def lines(self) -> list[str]:
        """Sentences for the user."""
        lines = [
            f"{self.path}: {self.bytes / 1e6:,.1f} MB, loaded again by {self.engine}",
            f"{self.changed} of {self.examples} answers changed, largest difference of a logit {self.difference:.2g} "
            f"(largest logit {self.largest:.3g}), on {self.source}",
        ]
        if self.exits is not None:
            lines.append(
                f"{self.exits[0]} of {self.examples} inputs left early, {self.exits[1]} of them at another exit than before"
            )
        return lines


def export(
    model: nn.Module | str | Path,
    to: ExportTarget = "onnx",
    out: str | Path | None = None,
    *,
    data: Data | str | Path | None = ExportOptions.data,
    opset: int = ExportOptions.opset,
    size: int | None = OpenOptions.size,
    weights: str | Path | None = OpenOptions.weights,
) -> ExportResult:
    """Export a trained network to the file of another engine, for any batch size.

    >>> deepres.export("runs/photos", to="onnx", out="photos.onnx").changed
    0

    ``model``, ``weights``: as in ``open_model``; also a ghost, or its folder, whose settings skip the same blocks for every input. One
    with early exits becomes a folder of segments, which ``open_model`` runs with the same depth for each input as the ghost.
    ``to``: ``"onnx"``, ``"openvino"`` (``.xml`` and ``.bin``), ``"torch-export"`` (``.pt2``), or ``"aoti"``, AOTInductor's package for
    C++ on this kind of processor. ``out``: the file; by default the network's name with the engine's suffix. The file holds the names of
    the classes, the preparation of images and a checksum as metadata.

    The file is loaded again in its engine and compared with the original on 32 inputs, alone and in batches: validation images of
    ``data`` where it is given, else windows of two photographs. ``out`` appears whole, or not at all.

    Raises ``DeepresError`` where an engine is not installed, the network has an operation that cannot be exported (with the module's
    name), a ghost decides by input, or the loaded file gives other answers.
    """
    if to not in SUFFIX:
        raise DeepresError(
            f"cannot export to {to!r}{nearest(to, SUFFIX) or '; there are ' + ', '.join(get_args(ExportTarget))}"
        )
    if opset not in OPSETS:
        raise DeepresError(f"ONNX opset {opset}: torch.onnx writes {OPSETS[0]} to {OPSETS[-1]}")
    opened, ghost = _opened(model, weights)
    if ghost is not None:
        with on_cpu(ghost):
            return _export_segments(ghost, opened, to, out, data, size, opset)
    if isinstance(opened.model, ExportedModel):
        raise DeepresError(f"{opened.name}: is exported already; export the network that it was made of")
    path = Path(out) if out is not None else Path(f"{Path(opened.name.replace(':', '-')).name}{SUFFIX[to]}")
    if path.suffix != SUFFIX[to]:
        raise DeepresError(f"{path}: a file of {to} ends in {SUFFIX[to]}; name it {path.with_suffix(SUFFIX[to])}")
    with on_cpu(opened.model) as network:
        inputs, prepare, source = _inputs(opened, data, size)
        program = exporters.capture(network, inputs[:2])
        metadata = _metadata(opened, prepare, to, path.stem)
        with in_place(path) as temporary:
            if to == "onnx":
                exporters.to_onnx(program, inputs[:2], temporary, metadata, opset=opset)
            else:
                write = {
                    "openvino": exporters.to_openvino,
                    "aoti": exporters.to_aoti,
                    "torch-export": exporters.to_torch_export,
                }
                write[to](program, inputs[:2], temporary, metadata)
            result = _compare(network, temporary, inputs, to, path, source)
    return result


def _opened(model: nn.Module | str | Path, weights: str | Path | None) -> tuple[OpenedModel, Ghost | None]:
    """(the network to export, None), of a ghost the one without the blocks that it skips; or a ghost's whole network and the ghost,
    where inputs leave early.

    Raises ``DeepresError`` for a ghost whose gates decide by input: its graph would depend on the values.
    """
    noted: dict[str, Any] = {}
    if not isinstance(model, nn.Module) and is_ghost(model):
        folder = Path(model)
        model, noted = load_ghost(folder)
        name = folder.name
    else:
        name = ""
    if isinstance(model, Ghost):
        try:
            check_segments(model)
            network = model.net if used_exits(model) else model.static()
        except DeepresError as error:
            raise DeepresError(f"{name or 'the ghost'}: cannot be exported, as {error}") from error
        annotate(network, **noted)
        return replace(open_trained(network), name=name or "ghost"), model if used_exits(model) else None
    return open_trained(model, weights=weights), None


def _export_segments(
    ghost: Ghost,
    opened: OpenedModel,
    to: ExportTarget,
    out: str | Path | None,
    data: Data | str | Path | None,
    size: int | None,
    opset: int,
) -> ExportResult:
    """A ghost with early exits as a folder: a file for each segment, and ``runner.json``."""
    path = Path(out) if out is not None else Path(f"{opened.name}-{to}")
    if to == "aoti" or opened.spec.inputs == "tokens":
        what = "aoti" if to == "aoti" else "a ghost that takes tokens"
        raise DeepresError(
            f"{opened.name}: a ghost with early exits is exported for images, to onnx, openvino or torch-export, not {what}"
        )
    if path.suffix == SUFFIX[to]:
        raise DeepresError(f"{path}: a ghost with early exits becomes a folder of segments; give a folder's name as --out")
    if path.exists() and not (path / RUNNER).is_file():
        raise DeepresError(f"{path}: is there already and is not an exported ghost; give another --out")
    inputs, prepare, source = _inputs(opened, data, size)
    metadata = _metadata(opened, prepare, to, path.name)
    depths = [round(depth, 6) for depth in ghost.depth_of_exits().tolist()]
    segments = []
    with in_place(path) as temporary:
        temporary.mkdir()
        for number, segment in enumerate(capture_segments(ghost, inputs[:2])):
            file = temporary / f"segment-{number}{SUFFIX[to]}"
            if to == "onnx":
                exporters.to_onnx(segment.program, segment.example, file, metadata, opset=opset, names=segment.names)
            elif to == "openvino":
                exporters.to_openvino(segment.program, segment.example, file, metadata, segment.names)
            else:
                exporters.to_torch_export(segment.program, segment.example, file, metadata)
            stamp = open_file(file, trust=True).header["sha256"]
            names: dict[str, Any] = dataclasses.asdict(segment.names)
            depth = depths[-1 if segment.exit is None else segment.exit]
            segments.append({"file": file.name, **names, "exit": segment.exit, "depth": depth, "sha256": stamp})
        plain: dict[str, Any] = {key: json.loads(metadata[key]) for key in ("labels", "preprocessing") if key in metadata}
        about: dict[str, Any] = {**metadata, **plain, "threshold": ghost.settings.exit_threshold, "segments": segments}
        write_runner(temporary, json.loads(json.dumps(about)))
        result = _compare(ghost, temporary, inputs, to, path, source)
    return result


def _inputs(opened: OpenedModel, data: Data | str | Path | None, size: int | None) -> tuple[Tensor, Prepare, str]:
    """(inputs to compare on, how they were prepared, where they come from)."""
    if data is not None:
        found = data_for(opened, data, size=size).data
        loader = Loader(found.val, found.prepare, min(_EXAMPLES, len(found.val)), shuffle=False)
        inputs = next(iter(loader.epoch(0))).images
        return inputs, found.prepare, f"{len(inputs)} validation examples of {found.name}"
    if opened.spec.inputs == "tokens":
        length = size or min(opened.prepare.size if opened.prepare else 64, opened.spec.longest or 64)
        vocabulary = opened.spec.classes or 2
        return torch.randint(vocabulary, (_EXAMPLES, length), generator=seeded(0)), Tokens(length), f"{_EXAMPLES} random texts"
    prepare = opened.preparation(size)
    return prepare.normalise(_windows(prepare)), prepare, f"{_EXAMPLES} windows of two photographs"


def _windows(prepare: Prepare) -> Tensor:
    """uint8 (32, C, size, size): windows of different sizes, of the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    draw = seeded(0)
    found = []
    for picture in load_sample_images().images:
        image = Image.fromarray(picture).convert("L" if prepare.channels == 1 else "RGB")
        for _ in range(_EXAMPLES // 2):
            side = int(torch.randint(120, min(image.size), (), generator=draw))
            left, top = (int(torch.randint(0, length - side + 1, (), generator=draw)) for length in image.size)
            found.append(prepare.image(image.crop((left, top, left + side, top + side))))
    stacked = torch.stack(found)
    return stacked if stacked.shape[1] == prepare.channels else stacked[:, :1].expand(-1, prepare.channels, -1, -1)


def _metadata(opened: OpenedModel, prepare: Prepare, to: ExportTarget, name: str) -> dict[str, str]:
    """Flat, as ONNX keeps it; all but the plain words are JSON."""
    noted = {
        "deepres": __version__,
        "format": to,
        "name": name,
        "inputs": opened.spec.inputs,
        "preprocessing": json.dumps(prepare.to_notes()),
    }
    labels = opened.notes.get("classes")
    if labels and opened.spec.classes not in (None, len(labels)):
        raise DeepresError(
            f"{opened.name}: its list of labels has {len(labels)} names, and the network has {opened.spec.classes} outputs; note one name "
            "for each output with deepres.models.annotate(model, classes=[...])"
        )
    if opened.classes:
        noted["labels"] = json.dumps(list(opened.classes))
    return noted


@torch.no_grad()
def _compare(network: nn.Module, file: Path, inputs: Tensor, to: ExportTarget, path: Path, source: str) -> ExportResult:
    """Raises ``DeepresError`` where the file does not give the original's answers, in one batch and in parts.

    An input whose confidence is the threshold but for the rounding may leave a ghost at another exit; it is counted, and its logits
    are not compared.
    """
    exported = open_exported(file, trust=True)
    if isinstance(network, Ghost):
        expected = network(inputs, trace=True).float()
        assert network.trace is not None and isinstance(exported, SegmentedModel)
        wanted = network.trace.exited_at
    else:
        expected, wanted = logits_of(network, inputs).float(), torch.full((len(inputs),), -1)
    difference, elsewhere = 0.0, torch.zeros(len(inputs), dtype=torch.bool)
    for sizes in ((len(inputs),), (1, 3, len(inputs) - 4)):
        parts = inputs.split(sizes) if len(inputs) > 4 else (inputs,)
        found = [(exported(part), getattr(exported, "exited_at", None)) for part in parts]
        logits = torch.cat([one for one, _ in found])
        exited_at = torch.cat([exits for _, exits in found if exits is not None]) if isinstance(network, Ghost) else wanted
        elsewhere |= exited_at != wanted
        gaps = (logits - expected)[exited_at == wanted].abs()
        difference = max(difference, float(gaps.max().nan_to_num(float("inf"))) if gaps.numel() else 0.0)
    largest = float(expected.abs().max())
    changed = int((logits.argmax(-1) != expected.argmax(-1)).reshape(len(inputs), -1).any(1).sum())
    moved = int(elsewhere.sum())
    if not difference <= _TOLERANCE * max(largest, 1e-6) or moved > len(inputs) // 16:
        exits = f", {moved} left at another exit" if moved else ""
        raise DeepresError(
            f"{path}: not written, as {exported.engine} gives other answers than the network: {changed} of {len(inputs)} changed"
            f"{exits}, largest difference of a logit {difference:.2g} (largest logit {largest:.3g})"
        )
    total = sum(one.stat().st_size for one in file.parent.rglob("*") if one.is_file())
    early = (int((wanted >= 0).sum()), moved) if isinstance(network, Ghost) else None
    return ExportResult(path, to, exported.engine, source, len(inputs), difference, largest, changed, total, early)


@contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """A path in a temporary folder beside ``path``, whose files are moved to ``path``'s folder at the end, ``path`` itself last."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            for file in sorted(Path(folder).iterdir(), key=lambda one: one == temporary):
                if file.is_dir() and path.is_dir():
                    os.replace(path, Path(folder) / "before")
                if file == temporary and file.suffix == ".onnx" and not weights_beside(file).exists():
                    weights_beside(path).unlink(missing_ok=True)  # of the file that is replaced; the checksum would include it
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise DeepresError(f"{path}: cannot be written ({error.strerror or error})") from error
