"""A network to build runners of, and what several engines need of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.adapters.spec import device_of
from deepres.engines.exporters import capture, openvino_model
from deepres.engines.folding import fold_norms
from deepres.engines.segmenting import SegmentGraphs
from deepres.ghosting import Ghost

if TYPE_CHECKING:
    from deepres.engines.int8 import Quantized


def channels_last(x: Tensor) -> Tensor:
    """Images in channels-last; anything else as it is."""
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, kind, shape and values to a digest of ``hashlib``."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


class ChannelsLast(nn.Module):
    """Gives a network its input in channels-last, and takes the logits out of a Hugging Face network's object."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(channels_last(x))
        logits: Tensor = getattr(out, "logits", out)  # of any shape: PyTorch's engines do not insist on classes
        return logits


class Source:
    """A network, put into eval mode, and inputs of the shape that it will get. What several engines need of it is computed once."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.example = model.eval(), example
        self.error: float | None = None  # in float32 on the validation split, percent, once it is measured
        self._quantized: dict[float, Quantized | Exception] = {}

    def quantized(self, error: float, make: Callable[[], Quantized]) -> Quantized:
        """The network in int8 for OpenVINO, as ``make`` gives or refuses it; calibrated once for all engines that run its graph.

        ``error``: the points by which the error may rise. Raises what ``make`` raised, ``DeepresError`` or an error of the library.
        """
        if error not in self._quantized:
            try:
                self._quantized[error] = make()
            except Exception as refused:
                self._quantized[error] = refused
        found = self._quantized[error]
        if isinstance(found, Exception):
            raise found
        return found

    @cached_property
    def weights(self) -> str:
        """A name for the values of its weights and buffers."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            if isinstance(value, Tensor):
                add_tensor(digest, name, value)
            else:  # of a module that keeps more than tensors
                digest.update(f"{name} {value!r}".encode())
        return digest.hexdigest()[:32]

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The captured graph, for any batch size. Raises ``DeepresError`` where the network cannot be captured."""
        return capture(self.model, self.example)

    @cached_property
    def openvino(self) -> Any:
        """The network as an ``openvino.Model``, for any batch size."""
        return openvino_model(self.program, self.example)

    @cached_property
    def segments(self) -> SegmentGraphs:
        """The segments of a ghost for OpenVINO. Raises ``DeepresError`` as ``SegmentGraphs.of`` does."""
        assert isinstance(self.model, Ghost)
        return SegmentGraphs.of(self.model, self.example)

    @cached_property
    def folded(self) -> nn.Module:
        """A copy with every batch norm folded into the layer before it, in float32 and channels-last, without gradients."""
        folded = fold_norms(self.model).float().to(device_of(self.model)).to(memory_format=torch.channels_last)
        return ChannelsLast(folded.requires_grad_(False)).eval()
