"""``deepres.optimize`` beside the engines as their users run them: one alternating run for each network and batch.

    python -m benchmarks.engines [--nets resnet18 vit-s] [--batches 1 32]

Each candidate is a process of its own. A row, one network at one batch, is written when it is done, and rows that are in
``benchmarks/results/engines.json`` are skipped, so that the run can be interrupted. Weights are random, so answers are not compared, and
``optimize`` runs with ``answers="close"`` as its rivals do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deepres
from benchmarks.common import BF16, RESULTS, Remote, alternate, record, summary
from deepres.adapters.blocks import find_blocks
from deepres.adapters.surgery import delete_blocks
from deepres.engines.exporters import need_engine

NAME = "engines"
RIVALS = ("pytorch", "pytorch compiled", "onnxruntime", "openvino float32", "openvino bf16", "openvino int8")
OURS = ("deepres float32", "deepres", "deepres int8")
SIDES = {"resnet56-cifar": 32}  # the others take 224


def network(name: str) -> nn.Module:
    """The networks of the table, with random weights."""
    torch.manual_seed(0)
    if name == "vit-s":
        import timm

        return timm.create_model("vit_small_patch16_224").eval()
    if name == "resnet50-shrunk":  # the shape that shrinking to 0.6 of the time leaves: a third of the removable blocks
        net = deepres.create("resnet50")
        _delete_blocks(net, 5)
        return net.eval()
    if name == "resnet50-ghosted":  # a ghost that bypasses the same blocks for all inputs
        net = deepres.create("resnet50")
        _delete_blocks(net, 3)
        return net.eval()
    return deepres.create(name).eval()


def _delete_blocks(net: nn.Module, count: int) -> None:
    """Delete removable blocks, evenly over the depth."""
    blocks = [block.path for block in find_blocks(net) if block.removable]
    delete_blocks(net, blocks[:: max(1, len(blocks) // count)][:count])


def inputs(name: str, batch: int) -> Tensor:
    side = SIDES.get(name, 224)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def candidate(how: str, name: str, batch: int) -> tuple[Callable[[], object], str]:
    """The call of one candidate, built in its own process, and what it came to."""
    model, images = network(name), inputs(name, batch)
    if how == "pytorch":
        return partial(_plain, model, images), how
    if how == "pytorch compiled":
        return partial(_plain, torch.compile(model), images), how
    if how == "onnxruntime":
        return _onnxruntime(model, images), how
    if how.startswith("openvino"):
        return _openvino(model, images, how.split()[1]), how
    if how == "deepres int8":
        return _ours_int8(model, images), how
    precision: Any = "float32" if how == "deepres float32" else "auto"
    fast = deepres.optimize(model, images, precision=precision, answers="close", again=True)
    return partial(fast, images), f"{how}: {fast.choice}"


def _plain(model: Callable[[Tensor], object], images: Tensor) -> object:
    with torch.inference_mode():
        return model(images)


def _onnxruntime(model: nn.Module, images: Tensor) -> Callable[[], object]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        session = need_engine("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, images.numpy()
    return lambda: session.run(None, {name: array})


def _openvino(model: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
    """As OpenVINO's documentation has it: convert, compile for latency, call."""
    openvino = need_engine("openvino")
    with torch.no_grad():
        converted: Any = openvino.convert_model(torch.export.export(model, (images,)))
    converted.reshape(list(images.shape))
    if precision == "int8":
        nncf = need_engine("nncf")
        calibration = [torch.randn(images.shape).numpy() for _ in range(max(1, 32 // len(images)))]
        converted = nncf.quantize(converted, nncf.Dataset(calibration), subset_size=len(calibration))
    hint = "f32" if precision == "float32" else "bf16"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    array = images.numpy()
    return lambda: compiled(array)


def _ours_int8(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """int8 as ``optimize`` makes it, calibrated on noise: the speed alone is measured."""
    from deepres.data import Data, Prepare, Resident

    pixels = torch.randint(0, 256, (96, *images.shape[1:]), dtype=torch.uint8)
    split = Resident(pixels, torch.zeros(96, dtype=torch.int64))
    classes = tuple(map(str, range(len(model(images[:1])[0]))))
    data = Data("noise", classes, split, split, split, Prepare.usual(images.shape[-1]))
    fast = deepres.optimize(model, images, data=data, error=100.0, precision="int8", answers="close", again=True)
    return partial(fast, images)


def row(name: str, batch: int, repeats: int, only: tuple[str, ...]) -> dict[str, Any]:
    """Images per second of every candidate, and ratios to the best rival of the same precision."""
    wanted = [how for how in (*RIVALS, *OURS) if not only or how in only]
    if not BF16:
        wanted = [how for how in wanted if "bf16" not in how]
    remotes, failed = {}, {}
    for how in wanted:
        try:
            remotes[how] = Remote(candidate, how, name, batch)
        except RuntimeError as error:
            failed[how] = str(error)
    try:
        times = alternate(dict(remotes), repeats=repeats)
        told = {how: remote.name for how, remote in remotes.items()}
    finally:
        for remote in remotes.values():
            remote.close()
    found = summary(times, batch, next(iter(times)))
    medians = {how: values["images_per_second"] for how, values in found.items()}

    def ratio(mine: str, rivals: tuple[str, ...]) -> float | None:
        there = [medians[rival] for rival in rivals if rival in medians]
        return round(medians[mine] / max(there), 3) if mine in medians and there else None

    against = {
        "deepres float32": RIVALS[:4],
        "deepres": RIVALS[:5],
        "deepres int8": RIVALS[5:],
    }
    return {
        "candidates": found,
        "names": told,
        "failed": failed,
        "over_best_rival_of_equal_precision": {mine: ratio(mine, rivals) for mine, rivals in against.items()},
        "int8_over_bf16": ratio("deepres int8", ("deepres",)),
    }


NETS = ("resnet18", "resnet50", "resnet101", "resnet56-cifar", "vit-s", "resnet50-shrunk", "resnet50-ghosted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS, choices=[*NETS, "resnet20-cifar"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--only", nargs="+", default=[], choices=[*RIVALS, *OURS], help="candidates; all by default")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default=NAME, help="of the file in benchmarks/results")
    parser.add_argument("--again", action="store_true", help="measure rows again that are in the file")
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in options.nets:
        for batch in options.batches:
            key = f"{name}, batch {batch}"
            if key in rows and not options.again:
                continue
            rows[key] = row(name, batch, options.repeats, tuple(options.only))
            record(options.name, {"what": "inference engines side by side, random weights, one process each", "rows": rows})


if __name__ == "__main__":
    main()
