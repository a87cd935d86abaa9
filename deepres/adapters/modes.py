"""Modes and device of a network, put back after use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put every module's training or eval mode back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def on_cpu(model: Net) -> Iterator[Net]:
    """Have ``model`` on the CPU in eval mode, and put it back to its device and its modules to their modes afterwards."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with kept_modes(model):
        try:
            yield model.cpu().eval()
        finally:
            model.to(device)
