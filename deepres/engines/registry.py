"""The engines that deepres knows. Adding one adds a file, and a line here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deepres.engines.cuda import CudaGraphs, TensorRT
from deepres.engines.engine import Engine
from deepres.engines.onnx_engine import ONNXRuntime
from deepres.engines.openvino_engine import OpenVINO
from deepres.engines.openvino_streams import OpenVINOStreams
from deepres.engines.torch_compiled import TorchCompiled, TorchEager
from deepres.errors import DeepresError, nearest

_ALL: tuple[Engine, ...] = (
    TorchEager(),
    TorchCompiled(),
    OpenVINO(),
    OpenVINOStreams(),
    ONNXRuntime(),
    CudaGraphs(),
    TensorRT(),
)
ENGINES = {engine.name: engine for engine in _ALL}


def engines_for(asked: str | Sequence[str], device: torch.device) -> list[Engine]:
    """The engines to try: those that are named, or for "auto" all that can run on ``device``.

    Raises ``DeepresError`` for a name that no engine has, for a named engine that cannot run here, and where none is named.
    """
    if asked == "auto":
        return [engine for engine in _ALL if not engine.missing(device)]
    if not asked:
        raise DeepresError(f"no engine is named; there are {', '.join(ENGINES)}, and auto for all of them")
    found = []
    for name in [asked] if isinstance(asked, str) else asked:
        if name not in ENGINES:
            raise DeepresError(f"there is no engine {name!r}{nearest(name, ENGINES)}; there are {', '.join(ENGINES)}")
        if reason := ENGINES[name].missing(device):
            raise DeepresError(f"engine {name}: {reason}")
        found.append(ENGINES[name])
    return found
