"""Options of a detector's measuring, predicting and shrinking, for Python and the command line; ``run`` has those of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Join = Literal["boxes", "proposals"]


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """Options of ``CombinedDetector``: passes over each image (He et al. 2015, table 9)."""

    scales: tuple[float, ...] = (1.0,)  # factors of the usual size at which every image is seen
    flip: bool = False  # also see every image mirrored
    refine: bool = False  # pool and regress boxes a second time, from where the first pass puts them
    join: Join = "boxes"  # of several detectors: fuse their boxes, or let each judge the proposals of all and average


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Options of ``write_detections``."""

    threshold: float = 0.5  # confidence from which boxes are drawn and printed
