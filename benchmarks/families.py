"""Other libraries' networks, shrunk and made ghosts of: torchvision's ResNet-34 and timm's VisionTransformer on photographs, Hugging
Face's GPT-2 on a text.

    python -m benchmarks.families --data ../shared/data/cifar10-jpeg --only vit --part shrunk
    python -m benchmarks.families --data ../shared/data/cifar10-jpeg --only vit --part ghosts --images 30000 --val 0.2 --epochs 10 \\
        --examples 2000
    python -m benchmarks.families --data ../shared/data/tinyshakespeare.txt --only gpt2 --size 64 --epochs 3
    python -m benchmarks.cells --voc ../shared/data/bccd-voc
    python -m benchmarks.families --data runs/cells --only resnet34 --part shrunk --size 96 --epochs 12
    python -m benchmarks.families --data runs/cells --only resnet34 --part ghosts --size 224 --val 0.5 --epochs 8 --seeds 1 \\
        --examples 250 --gates none

Every way has the same total of epochs, as in ``benchmarks.shrink``: half of them train the whole network and half are spent on what a
way does to it, or all of them follow one schedule. One more trains a shallow network for the second half alone, which is what is left to
who has the whole one already. The ghost is made of the whole network and may cost ``--error`` points.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import rivals
from benchmarks.common import BESIDE, DEVICE, SPEED, record
from benchmarks.ghost import times_by_batch
from benchmarks.shrink import WATCHED, errors_and_times, subset, thinned, watched, what
from deepres.data import Data, Resident, open_data
from deepres.ghosting import ghost
from deepres.ghosting.recording import batches
from deepres.shrinking import InverseCurriculum, ShrinkSchedule, Target, time_ratio
from deepres.shrinking.api import shrink_recipe
from deepres.training import Recipe, Run, recipe, train

LARGE = 128  # pixels of a side, from which on a network is first trained on smaller images, and timed on fewer
SMALLER = ((0.75, 64 / 224), (0.95, 128 / 224))  # until which share of the run, at which share of the side


def resnet34(classes: int, blocks: int = 16) -> nn.Module:
    layers = [3, 4, 6, 3] if blocks == 16 else [blocks // 4] * 4
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, layers, num_classes=classes)


def vit(classes: int, blocks: int = 8) -> nn.Module:
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=blocks, num_heads=3, num_classes=classes)


def gpt2(classes: int, blocks: int = 6) -> nn.Module:
    """For pieces of up to 64 characters; without dropout, which runs this short do not need."""
    sizes: dict[str, Any] = {"n_positions": 64, "n_embd": 64, "n_layer": blocks, "n_head": 4}
    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=classes, **sizes, **none, bos_token_id=0, eos_token_id=0, use_cache=False))


@dataclass(frozen=True)
class Case:
    what: str
    build: Callable[..., nn.Module]  # of the classes, and of the blocks where these are not all
    blocks: tuple[int, int]  # of the whole, and that are left
    first: Recipe
    fine_lr: float | None = None  # from a trained network on; ``shrink_recipe``'s
    text: bool = False


CASES = {
    "resnet34": Case("torchvision's ResNet-34", resnet34, (16, 8), recipe("fast-cifar", lr=0.05, batch=32)),
    "vit": Case("timm's VisionTransformer of 8 layers, 96 wide, patches of 8x8", vit, (8, 4), recipe("transformer")),
    "gpt2": Case(
        "Hugging Face's GPT-2 of 6 layers, 64 wide",
        gpt2,
        (6, 3),
        recipe("transformer", lr=3e-3, batch=16),
        fine_lr=2e-3,
        text=True,
    ),
}


def trained(
    path: Path, data: Data, seed: int, model: nn.Module, how: Recipe, curriculum: InverseCurriculum | None = None
) -> tuple[nn.Module, float]:
    """(the network, its error on the test split), trained, or as ``path`` has them."""
    if not path.exists():
        run = Run("custom", data.name, how, seed=seed, speed=SPEED, memory="all")
        few = watched(data, 200 if data.prepare.size >= LARGE else WATCHED)
        result = train(run, data=few, model=model, callbacks=[curriculum] if curriculum else [], show=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save((result.model, result.test.top1), path)
    found: tuple[nn.Module, float] = torch.load(path, weights_only=False)  # as a whole: shrunk ones have shapes of their own
    print(path.stem, f"{found[1]:.2f}", flush=True)
    return found


Trained = tuple[nn.Module, float]  # and its error on the test split


def shrinkings(name: str, data: Data, epochs: float, seed: int, out: Path) -> dict[str, Callable[[], Trained]]:
    """Each way to a network of fewer blocks, and the whole one, to be trained when called. What ``out`` has is not trained again."""
    case = CASES[name]
    goal, classes = Target("blocks", case.blocks[1]), len(data.classes)
    pressed = ShrinkSchedule.usual(goal, trained=False)
    half, once = (dataclasses.replace(case.first, epochs=share * epochs) for share in (0.5, 1.0))
    fine = shrink_recipe(case.build(classes))
    then = dataclasses.replace(fine, epochs=epochs / 2, batch=case.first.batch, lr=case.fine_lr or fine.lr)

    def go(way: str, model: nn.Module, how: Recipe, curriculum: InverseCurriculum | None = None) -> Trained:
        path = out / f"{name}-{data.prepare.size}px-{epochs:g}, {way}, seed{seed}.pt"
        return trained(path, data, seed, copy.deepcopy(model), how, curriculum)

    def scratch(
        way: str, curriculum: InverseCurriculum | None = None, blocks: int = case.blocks[0], how: Recipe = once
    ) -> Callable[[], Trained]:
        def call() -> Trained:
            torch.manual_seed(seed)
            return go(way, case.build(classes, blocks), how, curriculum)

        return call

    def mended(way: str, curriculum: InverseCurriculum | None = None) -> Callable[[], Trained]:
        def call() -> Trained:
            torch.manual_seed(seed)
            return go(way, go("half", case.build(classes), half)[0], then, curriculum)

        return call

    return {
        way: make(way, *more)
        for way, make, *more in (
            ("whole", scratch),
            ("whole, in two schedules", mended),
            ("inverse, from trained", mended, InverseCurriculum(ShrinkSchedule.usual(goal, trained=True))),
            ("lesion scores, fine-tuned", mended, rivals.Lesions(rivals.at_once(goal))),
            ("smallest responses, fine-tuned", mended, rivals.Responses(rivals.at_once(goal))),
            ("inverse, from scratch", scratch, InverseCurriculum(pressed)),
            ("threshold", scratch, rivals.Threshold(pressed)),
            ("norm scale", scratch, rivals.NormScale(ShrinkSchedule(goal, 0.35, 0.5))),
            ("shallow from scratch", scratch, None, case.blocks[1]),
            ("shallow from scratch, half of the epochs", scratch, None, case.blocks[1], half),
        )
    }


def shrunk(name: str, data: Data, epochs: float, seeds: int, out: Path) -> dict[str, Any]:
    """Every way's error, and its time against the whole network's."""
    inputs, _ = next(batches(data, "test", 256, DEVICE, 256))
    ways: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        found = {way: train() for way, train in shrinkings(name, data, epochs, seed, out).items()}
        whole, least = found["whole"]
        for way, (model, error) in found.items():
            time, _ = time_ratio(whole, model, inputs[:128]) if model is not whole else (1.0, None)
            one = {"error": round(error, 2), "time": round(time, 3), "above_whole": error - least}
            ways.setdefault(way, []).append(one)
            print(name, seed, way, one, flush=True)
    return {
        "what": what(CASES[name].what, data, epochs),
        "seeds": seeds,
        "blocks": list(CASES[name].blocks),
        "ways": {way: _row(many) for way, many in ways.items()},
    }


def ghosts(name: str, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Of networks trained in one schedule, or of those that ``--out`` has; on photographs that they have not seen."""
    case, large = CASES[name], data.prepare.size >= LARGE
    how = dataclasses.replace(case.first, epochs=options.epochs, sizes=SMALLER if large else ())
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        path = options.out / f"{name}-{data.prepare.size}px-{options.epochs:g}, for ghosts, seed{seed}.pt"
        whole, _ = trained(path, data, seed, case.build(len(data.classes)), how)
        if options.no_times:
            continue
        whole.eval()
        made = ghost(
            copy.deepcopy(whole),
            data,
            error=options.error,
            gates=options.gates,
            examples=options.examples,
            confirm=10**6,
            log=print,
        )
        seen = made.verified
        shares = {"error": seen.whole, "rise": seen.rise, "bound": seen.bound, "blocks": seen.blocks, "left": seen.exited}
        if large:  # a turn of theirs takes a minute
            times = {batch: ratio for batch, (ratio, _, _) in made.times.items()}
        else:
            times = times_by_batch(whole, made.model, list(batches(data, "test", 512, DEVICE, 256)))
        took = {str(batch): round(ratio, 3) for batch, ratio in times.items()}
        found.append({**{key: round(value, 3) for key, value in shares.items()}, "times": took})
        print(name, seed, *made.summary(), found[-1], sep="\n  ", flush=True)
    chose = {"allowed": options.error, "chosen_on": options.examples, "confirmed_on": len(data.val) - options.examples}
    return {"what": what(case.what, data, options.epochs), "seeds": options.seeds, **chose, "ghosts": found}


def _row(many: list[dict[str, float]]) -> dict[str, Any]:
    return {
        **errors_and_times([one["error"] for one in many], [one["time"] for one in many]),
        "above_whole": round(statistics.fmean(one["above_whole"] for one in many), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--part", choices=("shrunk", "ghosts"))
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=8.0, help="of every way, in all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of this process, where several run at once")
    parser.add_argument("--out", type=Path, default=Path("runs/families"), help="where networks are kept")
    parser.add_argument("--val", type=float, default=0.1, help="share of the training images that is kept for validation")
    parser.add_argument("--error", type=float, default=0.5, help="points that a ghost's error may rise")
    parser.add_argument("--gates", choices=("both", "fitted", "fixed", "none"), default="both", help="of ghosts")
    parser.add_argument(
        "--examples", type=int, default=500, help="validation images that a ghost is chosen on; the rest confirm it"
    )
    parser.add_argument("--no-times", action="store_true", help="only train the networks that ghosts are made of")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = open_data(options.data, size=options.size, val_share=options.val)
    if not data.is_text and isinstance(data.train, Resident):
        data = subset(data, options.images)
        data = dataclasses.replace(data, test=data.test.take(thinned(data.test, 2 if len(data.test) > 5000 else 1)))
    for name, case in CASES.items():
        if options.only in (name, None) and case.text == data.is_text:
            if options.part in ("shrunk", None):
                record(f"families-{name}{BESIDE}", shrunk(name, data, options.epochs, options.seeds, options.out))
            if options.part in ("ghosts", None) and not case.text:  # a ghost answers for a whole input
                found = ghosts(name, data, options)
                if not options.no_times:
                    record(f"ghosts-{name}{BESIDE}", found)


if __name__ == "__main__":
    main()
