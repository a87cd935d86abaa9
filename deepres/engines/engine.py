"""The interface of an inference engine: what it needs, which precisions it computes in, and how it builds a network."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepres.data import Data
    from deepres.engines.int8 import Quantized
    from deepres.engines.source import Source

Precision = Literal["float32", "bf16", "fp16", "int8"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Runner(nn.Module):
    """A network as an engine runs it: float32 (N, C, H, W), or tokens (N, L), to float32 logits for any N, without gradients."""

    thresholds: tuple[
        float, ...
    ] = ()  # of a ghost: confidence from which on inputs leave, for each exit; may be set at any time
    # of a ghost, (N,): exit of each input of the last call, as a ghost's trace counts them; -1: it passed all segments
    exited_at: Tensor | None = None

    def save(self, folder: Path) -> None:
        """Write what the engine needs to load the network again without converting it. By default nothing: it is built again.

        Raises ``OSError`` where it cannot be written.
        """


class Engine(ABC):
    """One way to run a network. An engine holds no state; ``build`` makes the runner."""

    name: ClassVar[str]
    package: ClassVar[str] = ""  # the module that has to be installed
    extra: ClassVar[str] = "deepres[export]"  # what pip has to install for it
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    takes_exits: ClassVar[bool] = False  # whether it runs a ghost whose inputs leave by early exits
    any_batch: ClassVar[bool] = True  # whether another number of inputs costs no compilation
    emulated: ClassVar[tuple[Precision, ...]] = ()  # precisions that it has everywhere, if slowly

    def calibrates(self, device: torch.device) -> bool:
        """Return whether int8 can be had of it on ``device`` with what is installed."""
        return False

    def missing(self, device: torch.device) -> str:
        """The reason why this engine cannot run here, with what to do; an empty string where it can."""
        if device.type not in self.devices:
            return f"{self.name} runs networks on {' or '.join(self.devices)}, and this one is on {device.type}"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed; pip install '{self.extra}'"
        return ""

    def is_worth_trying(self, example: Tensor) -> bool:
        """Return whether the engine may be the fastest for batches of this shape, where there are others."""
        return True

    @abstractmethod
    def precisions(self, device: torch.device) -> tuple[Precision, ...]:
        """Precisions that ``device`` computes natively, apart from int8."""

    @abstractmethod
    def build(self, source: Source, example: Tensor, precision: Precision) -> Runner:
        """Convert the network and prepare it for inputs of the shape of ``example``. The network is left as it was.

        Raises ``DeepresError`` where the engine cannot take the network.
        """

    def exact(self, source: Source, runner: Runner) -> nn.Module | None:
        """The network in float32 for single inputs that ``runner``, in low precision, cannot decide. Any number of rows.

        None where the logits do not show which these are: of a ghost, whose confidences decide too.
        """
        return source.folded

    def quantize(self, source: Source, data: Data, *, error: float, log: Callable[[str], None]) -> Quantized:
        """The network in int8, calibrated on the training split of ``data``, with its error on the validation split.

        Raises ``ErrorRises`` where the error rises by more than ``error`` points, and ``DeepresError`` for too few training images.
        """
        raise NotImplementedError(f"{self.name} does not compute in int8")

    def load(self, folder: Path, source: Source, precision: Precision) -> Runner | None:
        """The runner whose ``save`` wrote ``folder``, for batches of the shape of the source's example, or None where the engine keeps
        no files. Raises whatever its library does for files that it cannot read."""
        return None


class FixedBatch(Runner):
    """Runs any number of inputs through ``call``, which takes exactly ``size``: splits longer batches and pads the last part."""

    def __init__(self, call: nn.Module, size: int) -> None:
        super().__init__()
        self.call, self.size = call, size

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for part in x.split(self.size):
            missing = self.size - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self.call(filled)[: len(part)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def computes_bf16(device: torch.device) -> bool:
    """Return whether ``device`` multiplies bfloat16 natively. A CPU needs AVX-512 bf16 or AMX, else it emulates it many times slower."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
