"""The papers' ways to test: one crop, ten crops, whole images at several scales, and ensembles (He et al. 2015, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image
from torch import Tensor, nn

from deepres.adapters import device_of, kept_modes, logits_of
from deepres.data import Prepare, Resident, Split, UnreadableImage, open_image
from deepres.data.crop import pixels, scaled, window
from deepres.errors import DeepresError
from deepres.evaluation.measurement import Evaluation, _Tally
from deepres.evaluation.options import SHORT_SIDES, Protocol


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble, and how it wants its images."""

    model: nn.Module
    prepare: Prepare


def resized(image: Image.Image, short: int) -> Image.Image:
    """The whole image with its short side at ``short`` pixels; of one longer than 8 times its short side, the middle of that length."""
    width, height = (min(side, 8 * short) for side in scaled(image.width, image.height, short))
    whole = scaled(image.width, image.height, short)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return image if whole == image.size == (width, height) else window(image, short, (left, top, left + width, top + height))


def ten_crops(image: Image.Image, size: int, short: int) -> Tensor:
    """The four corners and the centre of ``size``, and their mirror images (Krizhevsky et al. 2012): uint8 (10, C, size, size)."""
    width, height = scaled(image.width, image.height, short)
    right, bottom = width - size, height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    views = torch.stack([pixels(window(image, short, (x, y, x + size, y + size))) for x, y in corners])
    return torch.cat([views, views.flip(-1)])


def _views(image: Image.Image, prepare: Prepare, protocol: Protocol, scales: Sequence[int]) -> list[Tensor]:
    """Batches of views, each batch of one size."""
    if protocol == "one-crop":
        return [pixels(prepare.fitted(image))[None]]
    if protocol == "ten-crop":
        return [ten_crops(image, prepare.size, prepare.resize or round(prepare.size * 256 / 224))]
    whole = [pixels(resized(image, short)) for short in scales]
    return [torch.stack([view, view.flip(-1)]) for view in whole]


@torch.no_grad()
def probabilities(
    members: Sequence[Member], image: Image.Image, protocol: Protocol, scales: Sequence[int] = SHORT_SIDES
) -> Tensor:
    """(K,): the mean of the members' softmax over all views of one image.

    In ``"multiscale"`` a network sees the whole image and its mirror image at each short side: its global pooling averages the
    class scores over all places, which is the fully convolutional form, since the classifier behind it is linear.
    """
    answers = []
    for member in members:
        device = device_of(member.model)
        views = _views(image, member.prepare, protocol, scales)
        scores = torch.cat(
            [logits_of(member.model, member.prepare.normalise(view.to(device))).float().softmax(1) for view in views]
        )
        answers.append(scores.mean(0))
    return torch.stack(answers).mean(0)


def measure_views(
    members: Sequence[Member],
    split: Split,
    classes: tuple[str, ...],
    protocol: Protocol,
    *,
    scales: Sequence[int] = SHORT_SIDES,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Test an ensemble (of one or more) by a protocol, image by image. What cannot be read is counted and left out.

    Raises ``DeepresError`` for an unknown protocol, scales that are too small, and where no image can be read.
    """
    if protocol not in get_args(Protocol):
        raise DeepresError(f"unknown protocol {protocol!r}; there are {', '.join(get_args(Protocol))}")
    if protocol == "multiscale" and (not scales or min(scales) < 1):
        raise DeepresError("scales are short sides in pixels, at least one and each at least 1")
    tally = _Tally(len(classes), torch.device("cpu"))
    bad = 0
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(kept_modes(member.model))
            member.model.eval()
        for i, image in enumerate(_images(split, members[0].prepare.channels), 1):
            if image is None:
                bad += 1
            else:
                found = probabilities(members, image, protocol, scales).cpu()
                tally.add(found.clamp(min=1e-30).log()[None], split.labels[i - 1 : i].cpu())
            watch(i, len(split))
    if bad == len(split):
        raise DeepresError("none of the images can be read")
    tally.unreadable += bad
    return tally.result(classes)


def _images(split: Split, channels: int) -> Iterator[Image.Image | None]:
    """The split's images; None for one that cannot be read."""
    if isinstance(split, Resident):
        for one in split.pixels.cpu():
            array = one.permute(1, 2, 0).numpy()
            yield Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        return
    for item in split.items:
        try:
            yield open_image(item.read(), channels)
        except (UnreadableImage, OSError):
            yield None
