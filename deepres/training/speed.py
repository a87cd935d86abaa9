"""Arithmetic of a run: precision, memory layout and compilation. ``speed_trial`` finds what is fastest."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepres.errors import DeepresError, nearest

if TYPE_CHECKING:  # this module is imported for its names, by a command line that may need no torch
    import torch


@dataclass(frozen=True)
class Speed:
    """One way to run the same network."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    fused: bool = False  # the kernels of ``deepres.kernels`` in place of norms, sums and activations
    deterministic: bool = False

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of images and convolution weights."""
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device, *, keep_casts: bool = True) -> AbstractContextManager[object]:
        """Context in which the forward pass is computed on ``device``. ``keep_casts``: keep cast weights for a second use."""
        import torch

        return torch.autocast(device.type, torch.bfloat16, cache_enabled=keep_casts) if self.bf16 else contextlib.nullcontext()


SPEEDS = {
    speed.name: speed
    for speed in (
        Speed("exact", deterministic=True),
        Speed("float32"),
        Speed("float32-channels-last", channels_last=True),
        Speed("bf16", bf16=True),
        Speed("bf16-channels-last", bf16=True, channels_last=True),
        Speed("float32-fused", channels_last=True, fused=True),
        Speed("bf16-fused", bf16=True, channels_last=True, fused=True),
        Speed("float32-compiled", channels_last=True, compile=True),
        Speed("bf16-compiled", bf16=True, channels_last=True, compile=True),
        Speed("bf16-compiled-contiguous", bf16=True, compile=True),
        Speed("float32-fused-compiled", channels_last=True, fused=True, compile=True),
        Speed("bf16-fused-compiled", bf16=True, channels_last=True, fused=True, compile=True),
    )
}


def check_speed(name: str) -> None:
    """Raise ``DeepresError`` for what is neither ``auto`` nor a name of ``SPEEDS``."""
    if name not in ("auto", *SPEEDS):
        modes = ", ".join(("auto", *SPEEDS))
        raise DeepresError(f"unknown speed {name!r}{nearest(name, SPEEDS) or f'; there are {modes}'}")
