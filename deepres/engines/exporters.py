"""Conversion of a network into the files of other engines: ONNX, OpenVINO, ``torch.export`` and AOTInductor.

All start from one graph, which ``torch.export`` captures with the batch size left open. Files are written with the metadata that they
are given and a checksum, which ``models.open_exported`` compares.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deepres.adapters import kept_modes, logits_of
from deepres.engines.options import ExportOptions
from deepres.errors import DeepresError, first_line
from deepres.models.exported import PLACEHOLDER, stamp_archive, stamp_bytes

_LARGEST = 1900 << 20  # bytes of weights in one protobuf file; more are kept in a file beside it


@dataclass(frozen=True)
class TensorNames:
    """Names of a graph's inputs and outputs, in their order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("logits",)

    @classmethod
    def of(cls, example: Tensor) -> TensorNames:
        """The names of a network that takes ``example``."""
        return cls(("images" if example.ndim == 4 else "tokens",))


class _Logits(nn.Module):
    """A network whose output is the logits alone, whatever its library wraps them in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.model, inputs)


def capture(model: nn.Module, example: Tensor) -> ExportedProgram:
    """Capture the graph of ``model`` in eval mode, for any batch size.

    ``example``: an input, (N, C, H, W) or tokens (N, L), of which all sides but the first stay as they are.

    Raises ``DeepresError`` that names the module whose code cannot be captured, such as one that branches on the values it is given.
    """
    return capture_graph(_Logits(model), (example,), model)


def capture_graph(graph: nn.Module, examples: Sequence[Tensor], model: nn.Module) -> ExportedProgram:
    """``capture`` of a module that computes with several inputs, each with one row for each of the batch, and with ``model``'s modules."""
    # a size of 1 would be taken for a constant
    given = tuple(torch.cat([example] * 2)[: max(2, len(example))] for example in examples)
    shapes = ({0: Dim("batch", min=1)},) * len(given)
    try:
        with kept_modes(model), torch.no_grad(), quiet():
            model.eval()
            return torch.export.export(graph, given, dynamic_shapes=shapes, strict=False)
    except DeepresError:
        raise
    except Exception as error:  # torch.export raises whatever the network's code does with symbolic sizes
        reason = first_line(error, 160)
        if "specialized it to be a constant" in str(error):
            reason = "its code reads the batch size as a number, such as by len(x), where x.shape[0] would leave it open"
        raise DeepresError(
            f"{_culprit(model, error)}: cannot be captured by torch.export for any batch size ({reason})"
        ) from error


def to_torch_export(model: nn.Module | ExportedProgram, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``model`` as a ``torch.export`` archive (``.pt2``), to load with ``torch.export.load`` without the network's code.

    Raises ``DeepresError`` as ``capture`` does.
    """
    with quiet():
        torch.export.save(_program(model, example), path)
    stamp_archive(path, metadata)


def to_aoti(model: nn.Module | ExportedProgram, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Compile ``model`` for this machine's processor into an AOTInductor package (``.pt2``), which C++ loads without Python.

    Raises ``DeepresError`` as ``capture`` does, and where no C++ compiler is found or it fails.
    """
    program = _program(model, example)
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(metadata)}
            )
    except Exception as error:  # Inductor wraps the compiler's errors in several kinds
        raise DeepresError(f"AOTInductor: could not compile the network ({first_line(error, 160)})") from error
    stamp_archive(path, metadata)


def to_onnx(
    model: nn.Module | ExportedProgram,
    example: Tensor,
    path: Path,
    metadata: Mapping[str, str],
    *,
    opset: int = ExportOptions.opset,
    names: TensorNames | None = None,
) -> None:
    """Write ``model`` as an ONNX file, with the input ``images`` or ``tokens`` and the output ``logits``, or with these ``names``.

    Weights of more than about 1.9 GB are put into ``PATH.data`` beside it.

    Raises ``DeepresError`` as ``capture`` does, where ``onnx`` or ``onnxscript`` is not installed, and with the name of the module
    that has an operation which ONNX lacks.
    """
    for name in ("onnx", "onnxscript"):
        need_engine(name)
    program = _program(model, example)
    names = names or TensorNames.of(example)
    called: dict[str, Any] = {"input_names": list(names.inputs), "output_names": list(names.outputs)}
    try:
        with quiet():
            built: Any = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **called)
    except Exception as error:
        raise DeepresError(f"{_unknown_operation(program, error)}: ONNX opset {opset} cannot express it") from error
    built.model.metadata_props.update({**metadata, "sha256": PLACEHOLDER})
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    built.save(str(path), external_data=weights > _LARGEST)
    stamp_bytes(path)


def openvino_model(model: nn.Module | ExportedProgram, example: Tensor, names: TensorNames | None = None) -> Any:
    """``model`` as an ``openvino.Model`` in memory, batch size open, to compile or to quantize.

    Raises ``DeepresError`` as ``capture`` does, where ``openvino`` is not installed, and with the name of the module that has an
    operation which OpenVINO lacks.
    """
    openvino = need_engine("openvino")
    program = _program(model, example)
    given: tuple[Tensor, ...] = program.example_inputs[0] if program.example_inputs else (example,)
    try:
        with quiet():
            built = openvino.convert_model(program, example_input=given)
    except Exception as error:
        raise DeepresError(f"{_unknown_operation(program, error)}: OpenVINO cannot express it") from error
    built.reshape({i: openvino.PartialShape([-1, *one.shape[1:]]) for i, one in enumerate(given)})
    names = names or TensorNames.of(example)
    for ports, called in ((built.inputs, names.inputs), (built.outputs, names.outputs)):
        for port, name in zip(ports, called, strict=True):
            port.get_tensor().set_names({name})
    return built


def to_openvino(
    model: nn.Module | ExportedProgram,
    example: Tensor,
    path: Path,
    metadata: Mapping[str, str],
    names: TensorNames | None = None,
) -> None:
    """Write ``model`` as OpenVINO's ``.xml`` with its weights, in float32, in a ``.bin`` file beside it.

    Raises ``DeepresError`` as ``openvino_model`` does.
    """
    built = openvino_model(model, example, names)
    for key, value in {**metadata, "sha256": PLACEHOLDER}.items():
        built.set_rt_info(value, ["deepres", key])
    save_openvino(built, path)
    stamp_bytes(path)


def save_openvino(model: Any, path: Path) -> None:
    """Write an ``openvino.Model`` to ``path``, an ``.xml`` file, with its weights in float32 in a ``.bin`` file beside it.

    Raises ``OSError`` where it cannot be written.
    """
    try:
        need_engine("openvino").save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"OpenVINO: {first_line(error, 160)}") from error


def need_engine(name: str) -> Any:
    """Import an optional library of this package.

    Raises ``DeepresError`` with the line that installs it.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise DeepresError(f"{name.split('.')[0]} is not installed; run: pip install 'deepres[export]'") from error


def _program(model: nn.Module | ExportedProgram, example: Tensor) -> ExportedProgram:
    return model if isinstance(model, ExportedProgram) else capture(model, example)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks to their own developers: deprecations inside them, progress and dumped graphs."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=kind)
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _culprit(model: nn.Module, error: BaseException) -> str:
    """The innermost module of ``model`` in whose code ``error`` arose, by name and class."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for one in _chain(error):
        trace = one.__traceback__
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module) and names.get(id(module)):
                found = f"{names[id(module)]} ({type(module).__name__})"
            trace = trace.tb_next
        if found:
            return found
    return type(model).__name__


def _unknown_operation(program: ExportedProgram, error: BaseException) -> str:
    """The module with the operation that a converter's ``error`` names."""
    said = " ".join(str(one) for one in _chain(error))
    # the name by which the graph calls it, or that of its decomposition: aten.special_bessel_j0, prims.bessel_j0
    asked = {name for pair in re.findall(r"\baten[.:]+(\w+)|torch\.ops\.\w+\.(\w+)", said) for name in pair if name}
    for node in program.graph.nodes:
        operation = str(node.target).split(".")
        if node.op == "call_function" and len(operation) > 1 and any(operation[1].endswith(name) for name in asked):
            stack = [*node.meta.get("nn_module_stack", {}).values()]
            path, kind = stack[-1] if stack else ("", "")
            name = str(path).removeprefix("model").removeprefix(".") or "the network"
            return f"{name} ({str(getattr(kind, '__name__', kind)).rpartition('.')[2]}), operation {'.'.join(operation[:2])}"
    return f"the network ({first_line(error, 160)})"
