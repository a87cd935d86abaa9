"""Preparation of images as a network's input. It is stored with the weights, so that a saved network can be used by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from deepres.data.crop import fit, pixels, squash
from deepres.data.vocabulary import Vocabulary, vocabulary_from_notes
from deepres.errors import DeepresError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Prepare:
    """Resize, crop and normalise: ``(pixels / 255 - mean) / std``.

    ``mean`` has one value per channel, or one per pixel as in the paper, (C, H, W) nested.
    """

    size: int  # side of the input, pixels
    channels: int
    mean: tuple[Any, ...]
    std: tuple[float, ...]
    resize: int = 0  # short side before the centre crop; 0 means `size`
    interpolation: str = "bilinear"  # of resizing: a name of `Image.Resampling`, in lower case
    squash: bool = False  # whether both sides, and not the short one alone, are resized to `resize`, as Hugging Face's ViT does

    @cached_property
    def _mean(self) -> Tensor:
        mean = torch.tensor(self.mean, dtype=torch.float32)
        return mean.view(-1, 1, 1) if mean.ndim == 1 else mean

    @cached_property
    def _std(self) -> Tensor:
        return torch.tensor(self.std, dtype=torch.float32).view(-1, 1, 1)

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter of that name; bilinear for a name that Pillow does not know, such as timm's "random"."""
        return Image.Resampling.__members__.get(self.interpolation.upper(), Image.Resampling.BILINEAR)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32, on the images' device."""
        # in place: fresh memory for each step costs more than the arithmetic
        scaled = images.to(torch.float32, copy=True).div_(255)
        return scaled.sub_(self._mean.to(images.device)).div_(self._std.to(images.device))

    def image(self, image: Image.Image) -> Tensor:
        """A Pillow image in the right mode -> uint8 (C, size, size)."""
        return pixels(self.fitted(image))

    def fitted(self, image: Image.Image) -> Image.Image:
        """A Pillow image resized and cropped to ``size`` x ``size``."""
        if self.squash and (not self.resize or self.resize >= self.size):
            return squash(image, self.size, self.resize or self.size, self.resampling)
        return fit(image, self.size, self.resize or None, self.resampling)

    def example(self, rows: int, generator: torch.Generator) -> Tensor:
        """Inputs that a network takes, of random content."""
        return torch.randn(rows, self.channels, self.size, self.size, generator=generator)

    def __str__(self) -> str:
        values = ["by pixel" if isinstance(self.mean[0], tuple) else " ".join(f"{v:.3g}" for v in self.mean)]
        values.append(" ".join(f"{v:.3g}" for v in self.std))
        cut = (f" of {self.resize}" if self.resize else "") + (" squashed" if self.squash else "")
        return f"{self.size} pixels{cut}, {self.interpolation}, mean {values[0]}, deviation {values[1]}"

    def to_notes(self) -> dict[str, Any]:
        names = ("size", "channels", "mean", "std", "resize", "interpolation")
        return {name: getattr(self, name) for name in names} | ({"squash": True} if self.squash else {})

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> Prepare:
        if notes["channels"] == 0:
            return Tokens(notes["size"], vocabulary=vocabulary_from_notes(notes.get("tokens")))

        def frozen(value: Any) -> Any:
            return tuple(frozen(v) for v in value) if isinstance(value, list) else value

        return cls(**{key: frozen(value) for key, value in notes.items()})

    @classmethod
    def usual(cls, size: int, channels: int = 3) -> Prepare:
        """For weights that do not say: ImageNet's mean and deviation, the short side at 256/224 of a large input."""
        mean: Sequence[float] = IMAGENET_MEAN if channels == 3 else (sum(IMAGENET_MEAN) / 3,) * channels
        std: Sequence[float] = IMAGENET_STD if channels == 3 else (sum(IMAGENET_STD) / 3,) * channels
        return cls(size, channels, tuple(mean), tuple(std), round(size * 256 / 224) if size > 96 else 0)


@dataclass(frozen=True)
class Tokens(Prepare):
    """For language models, which take numbers of tokens, (N, L), as they are. ``size`` is L."""

    channels: int = 0
    mean: tuple[Any, ...] = ()
    std: tuple[float, ...] = ()
    vocabulary: Vocabulary | None = None  # None where it is not known, as for a file of an earlier version

    def to_notes(self) -> dict[str, Any]:
        tokens = {"tokens": self.vocabulary.to_notes()} if self.vocabulary is not None else {}
        return {**super().to_notes(), **tokens}

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or int32 (N, L) -> int64."""
        return images.long()

    def image(self, image: Image.Image) -> Tensor:
        raise DeepresError("this network reads text, not images")

    def example(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(rows, self.size, dtype=torch.int64)
