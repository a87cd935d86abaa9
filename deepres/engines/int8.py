"""int8 through NNCF: calibrated on training images, its loss measured on the validation split, and refused above a limit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from deepres.data import Data
from deepres.engines.engine import Runner
from deepres.engines.exporters import need_engine
from deepres.engines.inputs import some_inputs
from deepres.engines.openvino_runner import OpenVINORunner
from deepres.engines.source import Source
from deepres.errors import DeepresError
from deepres.evaluation import measure

CALIBRATION = 300  # training images, NNCF's own default
CONTROL = 1000  # validation images, at most, that NNCF ranks layers by
LEAST = 32  # images below which the ranges of activations are not known


class ErrorRises(DeepresError):
    """int8 costs more than is allowed."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A network in int8, and its error on the validation split."""

    runner: Runner
    before: float  # top-1 error in float32, percent
    after: float  # in int8
    examples: int  # of the validation split
    kept: int  # layers, of a ghost segments, left in higher precision because they lost most

    @property
    def rise(self) -> float:
        """Points that the error rises by; negative where it falls."""
        return self.after - self.before


def quantize_openvino(
    source: Source, data: Data, *, error: float = 0.3, log: Callable[[str], None] = lambda text: None
) -> Quantized:
    """Quantize a network to int8 for OpenVINO, in batches of the shape of ``source.example``.

    Weights and activations of convolutions and linear layers become int8, calibrated on up to 300 images of the training split. Where
    the top-1 error on the validation split rises by more than ``error`` points, NNCF's accuracy control returns the layers that lose most
    to higher precision, one after another. The test split is not looked at.

    Raises ``ErrorRises`` where the error still rises by more than ``error``, and ``DeepresError`` where the training split is too small.
    """
    nncf = _nncf()
    batches = [part.numpy() for part in calibration_batches(source, data, CALIBRATION)]
    log("calibrating int8")
    quantized = quantized_graph(source, source.openvino, batches)
    log("measuring the error of int8 on the validation split")
    before = float_error(source, data)
    runner = OpenVINORunner(quantized, len(source.example), "int8")
    after = error_of(runner, data, len(source.example))
    kept = 0
    if after - before > error:
        log(f"int8 raises the error by {after - before:.2f} points; returning the layers that lose most to higher precision")
        with _silent():
            careful = nncf.quantize_with_accuracy_control(
                source.openvino,
                nncf.Dataset(batches),
                nncf.Dataset(_validation(data)),
                _right,
                max_drop=error / 100,
                **_options(source, len(batches)),
            )
        kept = _quantizers(quantized) - _quantizers(careful)
        runner = OpenVINORunner(careful, len(source.example), "int8")
        after = error_of(runner, data, len(source.example))
    check_rise(before, after, error, data)
    return Quantized(runner, before, after, len(data.val), kept)


def quantized_graph(source: Source, model: Any, batches: Sequence[Any]) -> Any:
    """An ``openvino.Model`` of the network in ``source`` or of a part of it, with convolutions and linear layers in int8.

    ``batches``: what the model takes, arrays or tuples of arrays, on which the ranges of its activations are measured.
    """
    nncf = _nncf()
    with _silent():
        return nncf.quantize(model, nncf.Dataset(batches), **_options(source, len(batches)))


def _options(source: Source, batches: int) -> dict[str, Any]:
    # what NNCF calls the model's type: it leaves parts of attention in float
    transformer = any(isinstance(m, nn.LayerNorm) for m in source.model.modules())
    return {"subset_size": batches, "model_type": _nncf().ModelType.TRANSFORMER if transformer else None}


def calibration_batches(source: Source, data: Data, count: int) -> list[Tensor]:
    """At most ``count`` training images, in batches of the size of the source's example or of all of them.

    Raises ``DeepresError`` where the training split is too small.
    """
    if len(data.train) < LEAST:
        raise DeepresError(
            f"{data.name}: its training split has {len(data.train)} images, and calibrating int8 takes at least {LEAST}; "
            "give more images, or --precision bf16"
        )
    calibration, _ = some_inputs(data.train, data.prepare, count)
    batch = min(len(source.example), len(calibration))
    return [part for part in calibration.split(batch) if len(part) == batch]


def error_of(runner: Runner, data: Data, batch: int) -> float:
    """Top-1 error on the validation split, in percent."""
    return measure(runner, data.val, data.prepare, data.classes, batch=batch).top1


def float_error(source: Source, data: Data) -> float:
    """``error_of`` the network in float32; measured once for all engines."""
    if source.error is None:
        network: nn.Module = source.folded
        with contextlib.suppress(DeepresError):  # OpenVINO is faster, where it is installed and can take the network
            network = OpenVINORunner(source.openvino, len(source.example), "float32")
        source.error = measure(network, data.val, data.prepare, data.classes, batch=len(source.example)).top1
    return source.error


def check_rise(before: float, after: float, error: float, data: Data) -> None:
    """Raises ``ErrorRises`` where int8's error ``after`` is more than ``error`` points above ``before``."""
    if after - before > error:
        raise ErrorRises(
            f"int8 raises the error on {len(data.val)} validation images from {before:.2f} to {after:.2f} %, and at most "
            f"{error:g} points are allowed; --error allows more"
        )


def _validation(data: Data) -> list[tuple[np.ndarray, int]]:
    """Validation images one by one, as NNCF ranks layers by single images, and their labels."""
    images, labels = some_inputs(data.val, data.prepare, CONTROL)
    return [(image[None].numpy(), int(label)) for image, label in zip(images, labels, strict=True)]


def _right(compiled: Any, examples: Any) -> tuple[float, list[float]]:
    """The share of right answers, and whether each was right, as NNCF asks for it."""
    right = [float(compiled(image)[0].argmax(1)[0] == label) for image, label in examples]
    return float(np.mean(right)), right


def _quantizers(model: Any) -> int:
    """Layers of an ``openvino.Model`` whose input is quantized."""
    return sum(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())


def _nncf() -> Any:
    nncf = need_engine("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's progress bars, which it writes to standard output."""

    import rich

    before = rich.get_console().quiet
    rich.get_console().quiet = True
    try:
        yield
    finally:
        rich.get_console().quiet = before
