"""Use trained networks: test them on data, by themselves or as an ensemble, and classify image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of
from deepres.data import Data, Prepare, Split, UnreadableImage, is_image_name, open_data, open_image
from deepres.errors import DeepresError
from deepres.evaluation.measure import Evaluation, measure
from deepres.evaluation.protocols import SCALES, Member, Protocol, measure_views
from deepres.models import input_channels, load, notes, output_classes
from deepres.nn import ResNet


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
            inside = sorted(p for p in path.rglob("*") if is_image_name(p.name) and p.is_file())
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
    net: nn.Module
    if isinstance(model, (str, Path)):
        noted = notes(model)
        prepare = prepare or (Prepare.from_notes(noted["prepare"]) if "prepare" in noted else None)
        classes, net = classes or noted.get("classes"), load(model)
    else:
        net = model
    if prepare is None:
        config = net.config if isinstance(net, ResNet) else None
        small = config is not None and config.stem == "cifar"
        prepare = Prepare.usual(32 if small else 224, config.in_channels if config else 3)
    net.eval()
    return _predict(net, expand(images), prepare, classes, top, batch)


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
                probabilities = logits_of(model, prepare.normalise(torch.stack(tensors))).softmax(1)
            values, indices = (t.tolist() for t in probabilities.topk(min(top, probabilities.shape[1])))
        answers = iter(range(len(tensors)))
        for file, image in zip(files[start : start + batch], ready, strict=True):
            if isinstance(image, str):
                yield Prediction(str(file), error=image)
            else:
                row = next(answers)
                names = tuple(classes[i] if classes else str(i) for i in indices[row])
                yield Prediction(str(file), names, tuple(values[row]))


Model = nn.Module | str | Path


def evaluate(
    model: Model | Sequence[Model],
    data: Data | str | Path,
    *,
    split: Literal["train", "val", "test"] = "test",
    protocol: Protocol = "one-crop",
    scales: Sequence[int] = SCALES,
    batch: int = 250,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Test a network, or the one in a run's folder or file, on data; in float32. Several are tested as an ensemble.

    ``protocol``: ``"one-crop"`` of the centre, ``"ten-crop"``, or ``"multiscale"``, whole images at the short sides ``scales``
    (see ``protocols``). Probabilities are averaged over views and networks.

    Raises ``DeepresError`` where the networks' classes or input do not fit the data's.
    """
    given = list(model) if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    if not given:
        raise DeepresError("no network was given to evaluate")
    opened = [_open(one) for one in given]
    first = opened[0]
    if isinstance(data, (str, Path)):
        wanted = first[1].channels if first[1] else getattr(getattr(first[0], "config", None), "in_channels", None)
        data = open_data(data, size=first[1].size if first[1] else None, channels=wanted)
    members = []
    for net, prepare, trained in opened:
        if trained is not None and list(data.classes) != list(trained):
            only = sorted(set(data.classes) ^ set(trained))[:3]
            raise DeepresError(
                f"{data.name}: its {len(data.classes)} classes are not the {len(trained)} that the network was trained on"
                + (f" (only one of them has {', '.join(map(repr, only))})" if only else " in that order")
            )
        outputs = output_classes(net)
        if outputs is not None and outputs != len(data.classes):
            raise DeepresError(f"{data.name}: has {len(data.classes)} classes and the network {outputs}")
        wanted, given_channels = input_channels(net), (prepare or data.prepare).channels
        if wanted is not None and wanted != given_channels:
            raise DeepresError(
                f"{data.name}: its images were opened with {given_channels} channels and the network takes {wanted}; "
                f"open them with open_data(..., channels={wanted})"
            )
        members.append(Member(net.to(device), prepare or data.prepare))
    part: Split = getattr(data, split)
    if protocol == "one-crop" and len(members) == 1:
        one = members[0]
        return measure(one.model, part, one.prepare, data.classes, batch=batch, device=device, workers=workers)
    return measure_views(members, part, data.classes, protocol, scales=scales, watch=watch)


def _open(model: Model) -> tuple[nn.Module, Prepare | None, list[str] | None]:
    """(network, how it wants its images, its classes), the latter two where they were noted with its weights."""
    if isinstance(model, nn.Module):
        return model, None, None
    noted = notes(model)
    return load(model), Prepare.from_notes(noted["prepare"]) if "prepare" in noted else None, noted.get("classes")
