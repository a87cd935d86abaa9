"""ResNet-50 inference at 224, and how many answers low precision changes on real photographs."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

import deepres
from benchmarks.common import BF16, alternate, record, summary
from deepres.data import Prepare, open_data, open_image
from deepres.models import notes

BATCH = 32


def speed(repeats: int) -> dict[str, object]:
    """In bf16 where the processor computes it, else in float32: peers and floor too."""
    torch.manual_seed(0)
    peer = torchvision.models.resnet50().eval()
    ours = deepres.create("resnet50").eval()
    images = torch.randn(BATCH, 3, 224, 224)
    last = images.to(memory_format=torch.channels_last)
    tuned = torch.compile(copy.deepcopy(peer).to(memory_format=torch.channels_last))
    fast, fast_peer = deepres.optimize(ours, images), deepres.optimize(peer, images)
    floor = _convolutions(ours, images)

    def tuned_call() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            tuned(last)

    def plain(model: torch.nn.Module) -> object:
        with torch.inference_mode():
            return model(images)

    times = alternate(
        {
            "torchvision as it is": lambda: plain(peer),
            "torchvision tuned": tuned_call,
            "deepres.optimize(torchvision)": lambda: fast_peer(images),
            "deepres.optimize(deepres)": lambda: fast(images),
            "floor: its convolutions alone": floor,
        },
        repeats=repeats,
    )
    return {"what": f"resnet50, 224x224, batch {BATCH}", **summary(times, BATCH, "torchvision tuned")}


def _convolutions(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """All of the network's convolutions and its classifier, one after another, and nothing else."""
    calls = []
    kind = torch.bfloat16 if BF16 else torch.float32

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls.append((module, inputs[0].shape))

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    handles = [m.register_forward_pre_hook(note) for m in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    alone = torch.nn.ModuleList([copy.deepcopy(m).to(kind) for m, _ in calls]).to(memory_format=torch.channels_last)
    inputs = [
        torch.randn(shape).to(kind).to(memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)
        for _, shape in calls
    ]

    def run() -> None:
        with torch.inference_mode():
            for layer, x in zip(alone, inputs, strict=True):
                layer(x)

    return run


def agreement(root: Path, run: Path | None) -> dict[str, object]:
    """Top-1 answers of the bf16 network against the float32 one's: of a trained network on its test images, if given."""
    found: dict[str, object] = {}
    photographs = sorted((root / "imagenet-samples").rglob("*.JPEG"))
    if photographs:
        torch.manual_seed(0)
        model = deepres.create("resnet50").eval()
        prepare = Prepare.usual(224)
        images = prepare.normalise(torch.stack([prepare.image(open_image(file)) for file in photographs]))
        found["resnet50, fresh, 100 photographs"] = _compare(model, images)
    if run is not None:
        model, about = deepres.load(run), notes(run)
        data = open_data(root / "cifar10-jpeg", size=about["prepare"]["size"])
        images = Prepare.from_notes(about["prepare"]).normalise(data.test.pixels)  # type: ignore[union-attr]
        labels = data.test.labels
        found[f"{type(model).__name__} of {run.name}, trained, {len(images):,} test photographs"] = _compare(
            model, images, labels
        )
    return found


@torch.no_grad()
def _compare(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, object]:
    # not compiled: the same rounding, and a processor without bf16 emulates it
    settled, rough = (
        deepres.optimize(model, engine="torch-eager", precision="bf16", answers=kind) for kind in ("exact", "close")
    )
    again = 0

    def count(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        nonlocal again
        again += len(args[0])

    settled(images[:50])  # measures what is close
    assert settled.exact is not None
    settled.exact.register_forward_pre_hook(count)
    exact, low, answers = (torch.cat([call(part) for part in images.split(50)]) for call in (model, rough, settled))
    same = [round(100 * (exact.argmax(1) == logits.argmax(1)).double().mean().item(), 3) for logits in (answers, low)]
    out: dict[str, object] = {
        "images": len(images),
        "same_top1_percent": same[0],
        "same_top1_percent_unsettled": same[1],
        "computed_again_percent": round(100 * again / len(images), 2),
        "largest_difference_of_logits": round((exact - low).abs().max().item(), 4),
        "largest_logit": round(exact.abs().max().item(), 4),
    }
    if labels is not None:
        for name, logits in (("float32", exact), ("optimized", answers), ("unsettled", low)):
            out[f"error_{name}_percent"] = round(100 * (logits.argmax(1) != labels).double().mean().item(), 3)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of cifar10-jpeg and imagenet-samples")
    parser.add_argument("--run", type=Path, help="a network trained on cifar10-jpeg, to count changed answers with")
    parser.add_argument("--only", choices=("speed", "answers"))
    options = parser.parse_args()
    if options.only in ("speed", None):
        record("inference-resnet50" + ("" if BF16 else "-float32"), speed(options.repeats))
    if options.only in ("answers", None):
        record("inference-answers", agreement(options.data, options.run))
