"""Options of ``evaluate`` and ``predict``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepres.options import WorkersOption

Protocol = Literal["one-crop", "ten-crop", "multiscale"]
SHORT_SIDES = (224, 256, 384, 480, 640)  # pixels (He et al. 2015, section 3.4)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WorkersOption):
    """Options of ``evaluate``."""

    split: Literal["test", "val", "train"] = "test"  # part of the data that is measured
    protocol: Protocol = "one-crop"  # one centre crop, ten crops, or whole images at several scales
    scales: tuple[int, ...] = SHORT_SIDES  # short sides of the whole images for multiscale, in pixels
    batch: int = 250  # images of a pass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of ``predict``."""

    top: int = 5  # number of classes to name for each image
    batch: int = 32  # images of a pass
