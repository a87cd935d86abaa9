"""``export``: a trained network as a file of another engine, checked there against the original before it is kept."""

from __future__ import annotations

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
from deepres.adapters import logits_of
from deepres.data import Data, Loader, Prepare, Tokens, seeded
from deepres.engines import exporters
from deepres.engines.options import ExportOptions
from deepres.errors import DeepresError, nearest
from deepres.ghosting import Ghost, load_ghost
from deepres.ghosting.make import HEADS
from deepres.models import OpenedModel, annotate, data_for, open_exported, open_trained
from deepres.models.options import OpenOptions

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

    def lines(self) -> list[str]:
        """Sentences for the user."""
        return [
            f"{self.path}: {self.bytes / 1e6:,.1f} MB, loaded again by {self.engine}",
            f"{self.changed} of {self.examples} answers changed, largest difference of a logit {self.difference:.2g} "
            f"(largest logit {self.largest:.3g}), on {self.source}",
        ]


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

    ``model``, ``weights``: as in ``open_model``; also a ghost, or its folder, whose settings skip the same blocks for every input.
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
    opened = _opened(model, weights)
    network = opened.model.eval().cpu()
    path = Path(out) if out is not None else Path(f"{Path(opened.name.replace(':', '-')).name}{SUFFIX[to]}")
    if path.suffix != SUFFIX[to]:
        raise DeepresError(f"{path}: a file of {to} ends in {SUFFIX[to]}")
    inputs, prepare, source = _inputs(opened, data, size)
    program = exporters.capture(network, inputs[:2])
    metadata = _metadata(opened, prepare, to, path.stem)
    with _in_place(path) as temporary:
        if to == "onnx":
            exporters.to_onnx(program, inputs[:2], temporary, metadata, opset=opset)
        else:
            write = {"openvino": exporters.to_openvino, "aoti": exporters.to_aoti, "torch-export": exporters.to_torch_export}
            write[to](program, inputs[:2], temporary, metadata)
        result = _compare(network, temporary, inputs, to, path, source)
    return result


def _opened(model: nn.Module | str | Path, weights: str | Path | None) -> OpenedModel:
    """The network to export; of a ghost the one without the blocks that it skips.

    Raises ``DeepresError`` for a ghost that decides by input: its graph would depend on the values.
    """
    noted: dict[str, Any] = {}
    if not isinstance(model, nn.Module) and (Path(model) / HEADS).exists():
        folder = Path(model)
        model, noted = load_ghost(folder)
        name = folder.name
    else:
        name = ""
    if isinstance(model, Ghost):
        try:
            static = model.static()
        except DeepresError as error:
            raise DeepresError(f"{name or 'the ghost'}: cannot be exported, as {error}") from error
        annotate(static, **noted)
        return replace(open_trained(static), name=name or "ghost")
    return open_trained(model, weights=weights)


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
    if opened.classes:
        noted["labels"] = json.dumps(list(opened.classes))
    return noted


@torch.no_grad()
def _compare(network: nn.Module, file: Path, inputs: Tensor, to: ExportTarget, path: Path, source: str) -> ExportResult:
    """Raises ``DeepresError`` where the file does not give the original's answers, in one batch and in parts."""
    exported = open_exported(file, trust=True)
    expected = logits_of(network, inputs).float()
    parts = torch.cat([exported(part) for part in (inputs[:1], inputs[1:4], inputs[4:]) if len(part)])
    difference = max(float((got - expected).abs().max()) for got in (exported(inputs), parts))
    largest = float(expected.abs().max())
    changed = int((exported(inputs).argmax(-1) != expected.argmax(-1)).reshape(len(inputs), -1).any(1).sum())
    if not difference <= _TOLERANCE * max(largest, 1e-6):  # a NaN is not below either
        raise DeepresError(
            f"{path}: not written, as {exported.engine} gives other answers than the network: {changed} of {len(inputs)} changed, "
            f"largest difference of a logit {difference:.2g} (largest logit {largest:.3g})"
        )
    total = sum(one.stat().st_size for one in file.parent.iterdir())
    return ExportResult(path, to, exported.engine, source, len(inputs), difference, largest, changed, total)


@contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A path in a temporary folder beside ``path``, whose files are moved to ``path``'s folder at the end, ``path`` itself last."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            for file in sorted(Path(folder).iterdir(), key=lambda one: one == temporary):
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise DeepresError(f"{path}: cannot be written ({error.strerror or error})") from error
