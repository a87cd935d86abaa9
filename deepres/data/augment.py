"""Augmentation: of whole batches on the tensors' own device, and of single large images while they are decoded.

Everything random here is drawn from a generator that the caller seeds from (seed, epoch, step), so an epoch can be taken
up at any step, and a process draws for the global batch and uses its own part: the result does not depend on how many
processes share the work.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Augment = Literal["none", "pad-crop", "pad-crop-flip", "scale-crop", "random-resized-crop"]

# AlexNet's colour augmentation (Krizhevsky et al. 2012, section 4.1): principal components of ImageNet's RGB values.
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def pad_crop_flip(
    images: Tensor, generator: torch.Generator, *, pad: int, flip: bool = True, total: int | None = None, first: int = 0
) -> Tensor:
    """Pad by ``pad`` zeros, take a random crop of the old size, mirror half of them. (N, C, H, W), any dtype.

    ``images`` are rows ``first`` to ``first + N`` of a global batch of ``total``.
    """
    count, channels, height, width = images.shape
    total = total or count
    mine = slice(first, first + count)
    top, left = (torch.randint(0, 2 * pad + 1, (total,), generator=generator)[mine] for _ in range(2))
    mirror = (torch.rand(total, generator=generator) < 0.5)[mine] & flip
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(mirror[:, None], columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    rows, columns = rows.to(images.device), columns.to(images.device)
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def lighting(images: Tensor, generator: torch.Generator, *, strength: float = 0.1, total: int, first: int) -> Tensor:
    """Add a random multiple of the principal colour components to float RGB images in [0, 1]."""
    alpha = (torch.randn(total, 3, generator=generator) * strength)[first : first + len(images)]
    shift = (alpha * _EIGENVALUES) @ _EIGENVECTORS.T
    return images + shift.to(images)[:, :, None, None]


def mix(images: Tensor, targets: Tensor, generator: torch.Generator, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) with the batch reversed; of both, one at random.

    ``targets`` are (N, classes) probabilities; ``mixup`` and ``cutmix`` the parameters of their Beta laws, 0 for off.
    """
    cut = cutmix > 0 and (mixup <= 0 or bool(torch.rand((), generator=generator) < 0.5))
    alpha = cutmix if cut else mixup
    # Beta(a, a) as a ratio of two Gamma draws; torch's own Beta takes no generator
    draws = torch._standard_gamma(torch.full((2,), alpha), generator)
    share = float(draws[0] / draws.sum().clamp(min=1e-12))
    if cut:
        height, width = images.shape[-2:]
        tall, wide = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        top = int(torch.randint(0, height - tall + 1, (), generator=generator))
        left = int(torch.randint(0, width - wide + 1, (), generator=generator))
        mixed = images.clone()
        mixed[..., top : top + tall, left : left + wide] = images.flip(0)[..., top : top + tall, left : left + wide]
        images, share = mixed, 1 - tall * wide / (height * width)
    else:
        images = torch.lerp(images.flip(0), images, share)
    return images, torch.lerp(targets.flip(0), targets, share)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def random_view(image: Image.Image, augment: Augment, size: int, generator: torch.Generator) -> Image.Image:
    """One random ``size`` x ``size`` view of a large image.

    ``scale-crop``: short side random in [256, 480] at size 224 and in proportion otherwise (He et al. 2015, section 3.4).
    ``random-resized-crop``: 8 to 100 % of the area, sides 3:4 to 4:3 (Szegedy et al. 2015). Either mirrored half the time.
    """
    width, height = image.size
    if augment == "random-resized-crop":
        for _ in range(10):
            area = width * height * _uniform(0.08, 1.0, generator)
            ratio = 2.0 ** _uniform(-0.415, 0.415, generator)  # 2 ** 0.415 = 4/3
            wide, tall = (area * ratio) ** 0.5, (area / ratio) ** 0.5
            if wide <= width and tall <= height:
                break
        else:
            wide = tall = float(min(width, height))
    else:
        short = _uniform(256, 480, generator) * size / 224
        wide = tall = size * min(width, height) / short
    left, top = _uniform(0, width - wide, generator), _uniform(0, height - tall, generator)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall))
    if float(torch.rand((), generator=generator)) < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view
