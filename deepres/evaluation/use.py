"""Use trained networks: test them on data, by themselves or as an ensemble, and classify image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deepres.adapters import device_of, kept_modes, logits_of
from deepres.data import Data, Prepare, Split, UnreadableImage, open_image
from deepres.data.tree import folder_tree
from deepres.errors import DeepresError
from deepres.evaluation.measurement import Evaluation, measure
from deepres.evaluation.options import EvaluateOptions, PredictOptions, Protocol
from deepres.evaluation.protocols import Member, measure_views
from deepres.models import Paired, open_trained, open_with_data
from deepres.models.options import OpenOptions


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image; ``error`` instead where the file could not be read."""

    file: str
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def expand(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Files as they are, folders as all the images below them but hidden ones.

    Raises ``DeepresError`` for a folder without images, and where nothing is given.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = [path / name for name in folder_tree(path).images]
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
    images: str | Path | Iterable[str | Path],
    *,
    top: int = PredictOptions.top,
    batch: int = PredictOptions.batch,
    prepare: Prepare | None = None,
    classes: list[str] | None = None,
    weights: str | Path | None = OpenOptions.weights,
    size: int | None = OpenOptions.size,
) -> Iterator[Prediction]:
    """Classify image files, or those of folders, in order.

    ``model``: as in ``open_model``. ``PredictOptions`` and ``OpenOptions`` explain the options.
    ``prepare`` and ``classes`` take the place of those that the network came with.
    A file that cannot be read gives a ``Prediction`` with its error, not an exception.

    Raises ``DeepresError`` where ``classes`` are not as many as the network's outputs, and for ``top`` and ``batch`` below 1.
    """
    if top < 1 or batch < 1:
        raise DeepresError(f"top and batch are at least 1, not {top} and {batch}")
    opened = open_trained(model, weights=weights)
    prepare = prepare or opened.preparation(size)
    names = classes or (list(opened.classes) if opened.classes else None)
    if classes and opened.spec.classes not in (None, len(classes)):
        raise DeepresError(
            f"{opened.name}: has {opened.spec.classes} outputs, and {len(classes)} classes were given; name each output once"
        )
    return _predict(opened.model, expand(images), prepare, names, top, batch)


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
            with kept_modes(model), torch.inference_mode():
                model.eval()
                ready_images = prepare.normalise(torch.stack(tensors).to(device_of(model)))
                probabilities = logits_of(model, ready_images).float().softmax(1)
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
SplitName = Literal["train", "val", "test"]


def evaluate(
    model: Model | Sequence[Model],
    data: Data | str | Path,
    *,
    split: SplitName = EvaluateOptions.split,
    protocol: Protocol = EvaluateOptions.protocol,
    scales: Sequence[int] = EvaluateOptions.scales,
    batch: int = EvaluateOptions.batch,
    device: torch.device | str | None = None,
    workers: int | None = EvaluateOptions.workers,
    weights: str | Path | None = OpenOptions.weights,
    size: int | None = OpenOptions.size,
    watch: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Test a network, or the one that a reference names, on data; in float32. Several are tested as an ensemble.

    ``model``: as in ``open_model``. Its classes are matched with the data's by name, else by position, and ``say`` is told where that
    matters. ``EvaluateOptions`` and ``OpenOptions`` explain the options. Probabilities are averaged over views and networks.
    ``device``: None leaves a network where it is. ``watch(done, total)`` is called after each image of a protocol of several views.

    Raises ``DeepresError`` where the networks' classes or input do not fit the data's, and where they cannot be tested by ``protocol``.
    """
    if split not in get_args(SplitName):
        raise DeepresError(f"there is no split {split!r}; there are {', '.join(get_args(SplitName))}")
    if batch < 1:
        raise DeepresError(f"batch is at least 1, not {batch}")
    given = list(model) if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    if not given:
        raise DeepresError("no network was given to evaluate")
    pairs = [open_with_data(one, data, weights=weights, size=size) for one in given]
    for pair in pairs:
        pair.opened.need_weights()
        pair.need_fit()
        for remark in pair.remarks:
            say(remark)
        if device is not None:
            pair.model.to(device)
    first = pairs[0]
    part: Split = getattr(first.data, split)
    if protocol == "one-crop" and len(pairs) == 1:
        return measure(
            first.model,
            part,
            first.data.prepare,
            first.data.classes,
            batch=batch,
            device=device_of(first.model),
            workers=workers,
        )
    _check_views(pairs, protocol)
    members = [Member(_reordered(pair, first), pair.data.prepare) for pair in pairs]
    return measure_views(members, part, first.data.classes, protocol, scales=scales, watch=watch)


def _check_views(pairs: Sequence[Paired], protocol: Protocol) -> None:
    """Raises ``DeepresError`` for networks that cannot be tested image by image, together and by ``protocol``."""
    first = pairs[0]
    if first.data.is_text:
        raise DeepresError(f"{first.data.name}: is a text, which one network is tested on, by one-crop")
    channels = sorted({pair.data.prepare.channels for pair in pairs})
    if len(channels) > 1:
        raise DeepresError(
            f"the networks of an ensemble see the same images, and these take {' and '.join(map(str, channels))} channels"
        )
    for pair in pairs:
        if protocol == "multiscale" and pair.opened.spec.size is not None:
            raise DeepresError(
                f"{pair.opened.name}: takes images of {pair.opened.spec.size} pixels alone, so it is not tested at several scales; "
                "--protocol ten-crop shows it crops of this size"
            )


class _Reordered(nn.Module):
    """A network whose outputs are put in another order."""

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model, self.order = model, list(order)

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model, x)[:, self.order]


def _reordered(pair: Paired, first: Paired) -> nn.Module:
    """A network of an ensemble, its outputs in the order of the first one's.

    Raises ``DeepresError`` where the networks do not tell the same classes apart.
    """
    if pair.data.classes == first.data.classes:
        return pair.model
    if sorted(pair.data.classes) != sorted(first.data.classes):
        raise DeepresError(f"{pair.opened.name}: its classes are not those of {first.opened.name}")
    return _Reordered(pair.model, [pair.data.classes.index(name) for name in first.data.classes])
