"""Hardware and versions, for what is written beside measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from deepres import __version__


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The processor, the GPU where ``device`` is one, and versions."""
    return {
        "cpu": processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "deepres": __version__,
    }


def processor_name() -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
