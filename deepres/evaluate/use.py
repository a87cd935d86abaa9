"""Use a trained network on image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.data import SUFFIXES, Prepare, UnreadableImage, open_image
from deepres.errors import DeepresError
from deepres.nn import ResNet, load, notes


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image; ``error`` instead where the file could not be read."""

    file: str
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def expand(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are, folders as all the images below them."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise DeepresError(f"{path}: no images found in this folder")
            found += inside
        else:
            found.append(path)
    if not found:
        raise DeepresError("no images were given")
    return found


def predict(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    batch: int = 32,
    prepare: Prepare | None = None,
    classes: list[str] | None = None,
) -> Iterator[Prediction]:
    """Classify image files, in order. A file that cannot be read gives a ``Prediction`` with its error, not an exception."""
    if isinstance(model, (str, Path)):
        noted = notes(model)
        prepare = prepare or (Prepare.from_notes(noted["prepare"]) if "prepare" in noted else None)
        classes, model = classes or noted.get("classes"), load(model)
    if prepare is None:
        config = model.config if isinstance(model, ResNet) else None
        small = config is not None and config.stem == "cifar"
        prepare = Prepare.usual(32 if small else 224, config.in_channels if config else 3)
    model.eval()
    return _predict(model, expand(images), prepare, classes, top, batch)


def _predict(
    model: nn.Module, files: list[Path], prepare: Prepare, classes: list[str] | None, top: int, batch: int
) -> Iterator[Prediction]:
    for start in range(0, len(files), batch):
        ready: list[Tensor | str] = []
        for file in files[start : start + batch]:
            try:
                ready.append(prepare.image(open_image(file, prepare.channels)))
            except UnreadableImage as error:
                ready.append(str(error))
        tensors = [image for image in ready if isinstance(image, Tensor)]
        if tensors:
            with torch.inference_mode():
                probabilities = model(prepare.normalise(torch.stack(tensors))).softmax(1)
            values, indices = (t.tolist() for t in probabilities.topk(min(top, probabilities.shape[1])))
        answers = iter(range(len(tensors)))
        for file, image in zip(files[start : start + batch], ready, strict=True):
            if isinstance(image, str):
                yield Prediction(str(file), error=image)
            else:
                row = next(answers)
                names = tuple(classes[i] if classes else str(i) for i in indices[row])
                yield Prediction(str(file), names, tuple(values[row]))
