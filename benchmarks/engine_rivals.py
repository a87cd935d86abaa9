"""The candidates of ``benchmarks.engines``: each builds a network for one batch in its own process and gives the call to be timed.

Rivals stand here twice: as their documentation has them, and tuned as a careful user would (fixed shapes, channels-last, frozen weights,
memory that is not copied). What they share, such as the ONNX file, is converted once and kept in a folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deepres
from deepres.adapters.blocks import find_blocks
from deepres.adapters.surgery import delete_blocks
from deepres.data import Data, Prepare, Resident
from deepres.engines import Candidate, build_choice
from deepres.engines.compare import fastest_engine
from deepres.engines.exporters import need_engine
from deepres.engines.inputs import some_inputs, validation_images
from deepres.models import open_with_data

RIVALS = {  # -> the precision in which it computes
    "pytorch": "float32",
    "pytorch compiled": "float32",
    "pytorch tuned float32": "float32",
    "pytorch tuned bf16": "bf16",
    "onnxruntime": "float32",
    "onnxruntime tuned": "float32",
    "openvino float32": "float32",
    "openvino tuned float32": "float32",
    "openvino bf16": "bf16",
    "openvino tuned bf16": "bf16",
    "openvino int8": "int8",
    "openvino tuned int8": "int8",
    "openvino throughput float32": "float32",
    "openvino throughput bf16": "bf16",
    "openvino throughput int8": "int8",
}
# Second processes of these rivals: two copies of one program differ too, by where their memory lies and by what the machine does.
COPIES = {f"{how}, a copy": how for how in RIVALS if how.startswith("openvino tuned")}
# these write the files that others of their engine read
CONVERTING = ("onnxruntime", "openvino float32", "openvino int8", "openvino throughput float32", "openvino throughput int8")
OURS = {"deepres float32": "float32", "deepres bf16 close": "bf16", "deepres bf16 exact": "bf16", "deepres int8": "int8"}
RANDOM = (
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet56-cifar",
    "vit-s",
    "resnet50-shrunk",
    "resnet50-ghosted",
    "resnet20-cifar",
)
TURN = 0.2  # seconds: single calls of a millisecond, from one process to the next, would be timed with cold caches
MOST_CALLS = 256
CALIBRATION = 64  # inputs that the rivals' int8 is calibrated on
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a network at one batch, the data of a trained one, and a folder for what candidates share."""

    net: str  # of RANDOM, or a reference that ``open_model`` takes, with ``data``
    batch: int
    folder: str
    data: str | None = None
    seconds: float = 60.0  # for the turns in which ``optimize`` chooses
    error: float = 0.3

    def network(self) -> nn.Module:
        if self.data is not None:
            return open_with_data(self.net, self.data).model.eval()
        torch.manual_seed(0)
        if self.net == "vit-s":
            import timm

            return timm.create_model("vit_small_patch16_224").eval()
        if self.net == "resnet50-shrunk":  # the shape that shrinking to 0.6 of the time leaves: a third of the removable blocks
            return _without_blocks(deepres.create("resnet50"), 5)
        if self.net == "resnet50-ghosted":  # a ghost that bypasses the same blocks for all inputs
            return _without_blocks(deepres.create("resnet50"), 3)
        return deepres.create(self.net).eval()

    def examples(self) -> Data:
        """The data of a trained network, or noise."""
        if self.data is not None:
            return open_with_data(self.net, self.data).data
        side = 32 if self.net.endswith("cifar") else 224
        pixels = torch.randint(0, 256, (96, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        split = Resident(pixels, torch.zeros(96, dtype=torch.int64))
        classes = 10 if side == 32 else 1000
        return Data("noise", tuple(map(str, range(classes))), split, split, split, Prepare.usual(side))

    def images(self, data: Data) -> Tensor:
        """Validation images, or noise; at least a batch."""
        return validation_images(data, at_least=self.batch, count=256 if self.data is not None else 64)


def _without_blocks(net: nn.Module, count: int) -> nn.Module:
    """Delete removable blocks, evenly over the depth."""
    blocks = [block.path for block in find_blocks(net) if block.removable]
    delete_blocks(net, blocks[:: max(1, len(blocks) // count)][:count])
    return net.eval()


def build_candidate(how: str, case: Case, chosen: str = "") -> tuple[Call, str]:
    """As many calls of one candidate as take ``TURN`` seconds, and as JSON what it is and how many they are."""
    warnings.simplefilter("ignore")
    call, name = _build(how, case, chosen)
    for _ in range(2):
        call()
    calls = 1
    while calls < MOST_CALLS and _seconds(call, calls) < TURN:
        calls *= 2
    return partial(_repeated, call, calls), json.dumps({"name": name, "calls": calls})


def _repeated(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def _seconds(call: Call, times: int) -> float:
    began = time.perf_counter()
    _repeated(call, times)
    return time.perf_counter() - began


def _build(how: str, case: Case, chosen: str) -> tuple[Call, str]:
    """The call of one candidate, and its name; ``chosen``: of ours, the candidate that ``optimize`` chose, as JSON."""
    model, data = case.network(), case.examples()
    images = case.images(data)[: case.batch].contiguous()
    if how.startswith("deepres"):
        fast = build_choice(model, images, Path(case.folder) / how) if how == "deepres int8" else None
        fast = fast or build_choice(model, images, Candidate(**json.loads(chosen)).chosen(images.shape))
        return partial(fast, images), f"{how}: {fast.choice}"
    tuned = "tuned" in how
    if how.startswith("pytorch"):
        return (_tuned_pytorch(model, images, RIVALS[how]) if tuned else _pytorch(model, images, "compiled" in how)), how
    if how.startswith("onnxruntime"):
        return _onnxruntime(model, images, Path(case.folder), tuned), how
    single = "throughput" in how
    network = _openvino(model, images[:1] if single else images, data, Path(case.folder), RIVALS[how])
    call = _queue if single else _request if tuned else _compiled
    return call(network, images, {"INFERENCE_PRECISION_HINT": "f32" if RIVALS[how] == "float32" else "bf16"}), how


def _pytorch(model: nn.Module, images: Tensor, compiled: bool) -> Call:
    call: Callable[[Tensor], object] = torch.compile(model) if compiled else model
    return partial(_inferred, call, images)


def _inferred(call: Callable[[Tensor], object], images: Tensor) -> object:
    with torch.inference_mode():
        return call(images)


def _tuned_pytorch(model: nn.Module, images: Tensor, precision: str) -> Call:
    """Channels-last, compiled with the weights as constants, bf16 by autocast, as PyTorch's guide to CPU performance has it."""
    from torch._inductor import config

    config.freezing = True
    model, images = model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model)

    def call() -> object:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return compiled(images)

    return call


def _onnxruntime(model: nn.Module, images: Tensor, folder: Path, tuned: bool) -> Call:
    runtime, path = need_engine("onnxruntime"), folder / "model.onnx"
    if not path.exists():
        torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False)
    options = runtime.SessionOptions()
    if tuned:
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, images.numpy()
    if not tuned:
        return lambda: session.run(None, {name: array})
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output(session.get_outputs()[0].name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def _openvino(model: nn.Module, images: Tensor, data: Data, folder: Path, precision: str) -> Any:
    """The network as OpenVINO's documentation converts it, and in int8 quantizes it with NNCF."""
    openvino = need_engine("openvino")
    path = folder / f"openvino-{'int8' if precision == 'int8' else 'float'}-{len(images)}.xml"
    if not path.exists():
        with torch.no_grad():
            converted: Any = openvino.convert_model(torch.export.export(model, (images,)))
        if precision == "int8":
            nncf = need_engine("nncf")
            inputs, _ = some_inputs(data.train, data.prepare, max(CALIBRATION, len(images)))
            batches = [part.numpy() for part in inputs.split(len(images)) if len(part) == len(images)]
            converted = nncf.quantize(converted, nncf.Dataset(batches), subset_size=len(batches))
        openvino.save_model(converted, path, compress_to_fp16=False)
    return openvino.Core().read_model(path)


def _compiled(network: Any, images: Tensor, settings: dict[str, str]) -> Call:
    array = images.numpy()
    compiled = need_engine("openvino").Core().compile_model(network, "CPU", settings)
    return lambda: compiled(array)


def _request(network: Any, images: Tensor, settings: dict[str, str]) -> Call:
    array = images.numpy()
    network.reshape(list(images.shape))
    compiled = need_engine("openvino").Core().compile_model(network, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return lambda: request.infer({0: array}, share_inputs=True, share_outputs=True)


def _queue(network: Any, images: Tensor, settings: dict[str, str]) -> Call:
    """Single images in a queue of asynchronous requests, as the documentation advises for throughput."""
    openvino = need_engine("openvino")
    parts, answers = [image[None].numpy() for image in images], [None] * len(images)
    queue = openvino.AsyncInferQueue(
        openvino.Core().compile_model(network, "CPU", {**settings, "PERFORMANCE_HINT": "THROUGHPUT"})
    )

    def keep(request: Any, number: int) -> None:
        answers[number] = request.get_output_tensor(0).data.copy()

    queue.set_callback(keep)

    def call() -> object:
        for number, part in enumerate(parts):
            queue.start_async({0: part}, number, share_inputs=True)
        queue.wait_all()
        return answers

    return call


def choose(case: Case) -> tuple[Call, str]:
    """What ``optimize`` measures of all engines and precisions, and what it chooses for each of ours, as JSON."""
    warnings.simplefilter("ignore")
    os.environ["DEEPRES_CACHE"] = case.folder  # nothing remembered of other runs
    model, data = case.network(), case.examples()
    images = case.images(data)
    # on noise every rise of the error is allowed, as no answer means anything
    asked: Any = {"images": images, "data": data, "error": case.error if case.data is not None else 100.0, "answers": "close"}
    fast = deepres.optimize(model, images[: case.batch], seconds=case.seconds, **asked)
    chosen, measured = {}, fast.candidates
    for how, precision in OURS.items():
        answers: Any = "close" if how.endswith(("close", "int8")) else "exact"
        best = fastest_engine([one for one in measured if one.precision == precision and one.answers == answers], answers)
        if best is not None:
            chosen[how] = dataclasses.asdict(best)
    if "deepres int8" in chosen:
        int8 = Candidate(**chosen["deepres int8"])
        if fast.choice.precision != "int8":
            fast = deepres.optimize(model, images[: case.batch], engine=int8.engine, precision="int8", seconds=0.1, **asked)
        fast.save(Path(case.folder) / "deepres int8")
    return (lambda: None), json.dumps({"chosen": chosen, "candidates": [dataclasses.asdict(one) for one in measured]})
