"""Options that several packages share. This module does not import PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepres.errors import DeepresError


def parse_seconds(text: str) -> float:
    """Seconds of ``"90s"``, ``"20m"`` or ``"1.5h"``. Raises ``DeepresError`` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise DeepresError(f"--budget is a time such as 90s, 20m or 1.5h, not {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass(frozen=True, kw_only=True)
class DeviceOption:
    """The device to compute on."""

    device: str = "auto"  # auto, cpu, cuda, or one of several, such as cuda:1


@dataclass(frozen=True, kw_only=True)
class WorkersOption:
    """The decoding of images that are too many or too large to be kept in memory."""

    workers: int | None = None  # threads that decode large images; more than 8 are processes [one a core, at most 8]


@dataclass(frozen=True, kw_only=True)
class SizeOption:
    """The size of the input."""

    # side of the images in pixels, or tokens in a row of a text [as the network was trained; else the images' own, or 224]
    size: int | None = None
