"""Augmentation: of whole batches on the tensors' own device, and of single large images while they are decoded.

What happens to an example is a function of (seed, epoch, index) alone: ``draws`` hashes these three for a whole batch at once. So an
epoch can be taken up at any step, and neither the batch size nor the number of processes or threads changes a pixel.
The transforms of ``torchvision.transforms.v2`` draw from torch's global generator, which threads share, and so cannot promise that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deepres.data.options import Augment

# AlexNet's colour augmentation (Krizhevsky et al. 2012, section 4.1): principal components of ImageNet's RGB values.
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_STRENGTH = 0.1  # standard deviation of their multiples


def draws(count: int, index: Tensor, *key: int) -> Tensor:
    """(N, ``count``) float64 uniform in [0, 1): row i depends on ``index[i]`` and the ``key``, (seed, epoch, ...), alone.

    A counter-based generator: splitmix64 (Steele et al. 2014) of the key and the index, vectorised over the batch.
    """
    with np.errstate(over="ignore"):
        state = _scramble(np.array(0x9E3779B97F4A7C15, dtype=np.uint64))
        for part in key:
            state = _scramble(state + np.uint64(part & 0xFFFFFFFFFFFFFFFF))
        rows = _scramble(state + index.cpu().numpy().astype(np.uint64))[:, None]
        words = _scramble(rows + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _scramble(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def pad_crop_flip(images: Tensor, random: Tensor, *, pad: int, flip: bool = True) -> Tensor:
    """Pad by ``pad`` zeros, take a random crop of the old size, mirror half of them. (N, C, H, W), any dtype.

    ``random``: (N, 3) uniform in [0, 1), see ``draws``: top, left, and whether to mirror.
    """
    count, _, height, width = images.shape
    top, left = (random[:, :2] * (2 * pad + 1)).long().T.to(images.device)
    mirror = ((random[:, 2] < 0.5) & flip).to(images.device)
    # all crops of all images, as a view: an index copies whole rows, several times as fast as one for each pixel
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(count, device=images.device), :, top, left]
    return torch.where(mirror[:, None, None, None], crops.flip(3), crops)


def alternating(random: Tensor, epoch: int) -> Tensor:
    """Numbers uniform in [0, 1) on the other side of a half in every second ``epoch``, so that two epochs show an image both ways.

    ``random``: (N,) uniform in [0, 1), the same in each epoch. Alternating flips are those of Jordan 2024 (airbench).
    """
    return (random + 0.5 * (epoch % 2)) % 1


def lighting(images: Tensor, random: Tensor) -> Tensor:
    """Add a random multiple of the principal colour components to float RGB images in [0, 1] (N, 3, H, W).

    ``random``: (N, 6) uniform in [0, 1); two of them make a normal number (Box and Muller).
    """
    radius = (-2 * torch.log1p(-random[:, :3])).sqrt()
    alpha = (radius * torch.cos(2 * torch.pi * random[:, 3:]) * _STRENGTH).float()
    shift = (alpha * _EIGENVALUES) @ _EIGENVECTORS.T
    return images + shift.to(images)[:, :, None, None]


def neighbours(count: int) -> Tensor:
    """The partner of each of ``count`` rows in mixing: (0, 1), (2, 3), ...; an odd last row is its own partner.

    ``Shard`` never parts such a pair, so the number of processes does not change who is mixed with whom.
    """
    return (torch.arange(count) ^ 1).clamp(max=max(count - 1, 0))


def mix(images: Tensor, targets: Tensor, generator: torch.Generator, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of neighbouring rows; of both, one at random for the whole batch.

    ``targets`` are (N, classes) probabilities; ``mixup`` and ``cutmix`` the parameters of their Beta laws, 0 for off. Seeded by
    (seed, step) alone, each process gives the part of the global batch that it has.
    """
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    cut = cutmix > 0 and (mixup <= 0 or numbers.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = numbers.beta(alpha, alpha)
    partner = neighbours(len(images)).to(images.device)
    others = images[partner]
    if cut:
        height, width = images.shape[-2:]
        tall, wide = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        top, left = int(numbers.integers(height - tall + 1)), int(numbers.integers(width - wide + 1))
        mixed = images.clone()
        mixed[..., top : top + tall, left : left + wide] = others[..., top : top + tall, left : left + wide]
        images, share = mixed, 1 - tall * wide / (height * width)
    else:
        images = torch.lerp(others, images, share)
    return images, torch.lerp(targets[partner], targets, share)


def random_view(image: Image.Image, augment: Augment, size: int, random: Iterator[float]) -> Image.Image:
    """One random ``size`` x ``size`` view of a large image, from numbers uniform in [0, 1); at most 23 are taken.

    ``scale-crop``: short side random in [256, 480] at size 224 and in proportion otherwise (He et al. 2015, section 3.4).
    ``random-resized-crop``: 8 to 100 % of the area, sides 3:4 to 4:3 (Szegedy et al. 2015). Either mirrored half the time.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(random)

    width, height = image.size
    if augment == "random-resized-crop":
        for _ in range(10):
            area = width * height * uniform(0.08, 1.0)
            ratio = 2.0 ** uniform(-0.415, 0.415)  # 2 ** 0.415 = 4/3
            wide, tall = (area * ratio) ** 0.5, (area / ratio) ** 0.5
            if wide <= width and tall <= height:
                break
        else:
            wide = tall = float(min(width, height))
    else:
        wide = tall = size * min(width, height) / (uniform(256, 480) * size / 224)
    left, top = uniform(0, width - wide), uniform(0, height - tall)
    # one call, whose cost does not grow with the image's aspect ratio
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if next(random) < 0.5 else view
