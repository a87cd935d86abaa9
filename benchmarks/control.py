"""A control whose answer is known: each input says how many blocks it needs, and a ghost has to allot about as many.

    python -m benchmarks.control                 # four seeds; a seed that is finished is not trained again

An input is a row of random bits, two of which are marked. The label says whether the marked bits are equal. Their distance is drawn
uniformly, and a feature of a convolutional network sees both only if its receptive field reaches as far. What averages over
positions and is linear behind them, as the classifier and the exit heads here, cannot compare the marks by features that see one of them:
for each bit of the one, both labels are equally frequent, so that at most three of the four pairs of bits are named rightly, and none
with confidence. An input needs the blocks that it takes for the receptive field to reach, and a shallow network cannot be right.
The ghost is made as usual, by exits and a limit of the error. Its time is counted in blocks, not measured, so the result does not
depend on a clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.common import record
from deepres.data import Data, Prepare, Resident
from deepres.ghosting import Ghost, Settings
from deepres.ghosting.candidates import frontier
from deepres.ghosting.confirm import confirmed, verify, within_error
from deepres.ghosting.fit import Costs, fit_ghost
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches
from deepres.nn import ResNet, ResNetConfig
from deepres.training import Recipe, Run, train

CPU = torch.device("cpu")
BLOCKS, SHALLOW = 16, 4
WIDTH = 40  # bits of a row
FARTHEST = 2 * (
    BLOCKS + 1
)  # distance that the receptive field of all blocks reaches: each adds one position a side, and the stem
LIMIT, CHOOSE, CONFIRM, TEST = 1.0, 1000, 3000, 3000  # points; examples
# At 0.1 networks have 1.1 to 4.7 % test error after as many epochs, at 0.03 they have 0 to 1.2 %, and exits are right within their reach.
RECIPE = Recipe("control", epochs=16.0, batch=128, lr=0.03, schedule="one-cycle", warmup=0.3, augment="none", exits=1.0)


def rows(n: int, generator: torch.Generator) -> tuple[Resident, Tensor]:
    """``n`` examples, (N, 2, 1, WIDTH) of bits and marks, and the distance of the marks, (N,)."""
    bits = torch.randint(2, (n, WIDTH), generator=generator)
    distance = torch.randint(1, FARTHEST + 1, (n,), generator=generator)
    start = (torch.rand(n, generator=generator) * (WIDTH - distance)).long()
    at = torch.stack([start, start + distance], 1)
    marks = torch.zeros_like(bits).scatter_(1, at, 1)
    ends = bits.gather(1, at)
    pixels = 255 * torch.stack([bits, marks], 1).to(torch.uint8).unsqueeze(2)
    return Resident(pixels, (ends[:, 0] == ends[:, 1]).long()), distance


def data_of(train_examples: int) -> tuple[Data, Tensor]:
    """The set, and the distances of its test examples."""
    generator = torch.Generator().manual_seed(0)
    (learn, _), (val, _), (test, far) = (rows(n, generator) for n in (train_examples, CHOOSE + CONFIRM, TEST))
    prepare = Prepare(WIDTH, 2, (0.5, 0.5), (0.5, 0.5))
    return Data("marked bits", ("different", "equal"), learn, val, test, prepare), far


def needed(distance: Tensor) -> Tensor:
    """Blocks until a feature sees both marks: the stem and each block add a position on both sides."""
    return ((distance + 1) // 2 - 1).clamp(min=0)


def network(blocks: int) -> ResNet:
    return ResNet(
        ResNetConfig("bottleneck", (blocks,), (16,), shortcut="B", stem="cifar", expansion=2, in_channels=2, num_classes=2)
    )


def by_distance(right: Tensor, distance: Tensor, step: int = 4) -> dict[str, float]:
    """Accuracy in percent, by distance."""
    found = {}
    for low in range(1, FARTHEST + 1, step):
        here = (distance >= low) & (distance < low + step)
        found[f"{low} to {min(low + step - 1, FARTHEST)}"] = round(100 * float(right[here].float().mean()), 1)
    return found


def ghost_of(net: nn.Module, data: Data) -> Ghost:
    """With exits alone, at the earliest settings whose error rises by at most ``LIMIT``."""
    made = Ghost(net)
    fit_ghost(made, data, gates=False, examples=CHOOSE)
    held, fresh = (Passes(made, list(batches(data, "val", n, CPU, 250, skip=s))) for n, s in ((CHOOSE, 0), (CONFIRM, CHOOSE)))
    each, free = torch.full((BLOCKS,), 1 / BLOCKS), torch.zeros(len(made.segments))
    blocks = Costs(each, torch.zeros(1 + BLOCKS), each, free, free)
    points = frontier(held, blocks, kinds=())
    kinds = within_error(points, points[0].error, LIMIT, len(held))
    found = confirmed(kinds, held, fresh, LIMIT, blocks, log=print)
    made.settings = found[0].settings if found else Settings()
    return made


def trial(seed: int, data: Data, distance: Tensor, epochs: float, out: Path) -> dict[str, Any]:
    """Train both networks of one seed, or go on, and make the ghost."""
    began, right = time.perf_counter(), {}
    how = dataclasses.replace(RECIPE, epochs=epochs)
    test = list(batches(data, "test", TEST, CPU, 250))
    for name, blocks in (("whole", BLOCKS), ("shallow", SHALLOW)):
        torch.manual_seed(seed)
        recipe = how if name == "whole" else dataclasses.replace(how, exits=0.0)
        run = Run("given", data.name, recipe, str(out / f"{name}-{seed}"), seed, speed="float32-channels-last", memory="all")
        net = train(run, resume=True, data=data, model=network(blocks), show=False).model
        with torch.no_grad():
            right[name] = torch.cat([net.eval()(x).argmax(1) == y for x, y in test])
        if name == "whole":
            whole = net
    made = ghost_of(whole, data)
    verified = verify(made, test, data.classes)
    used, need = BLOCKS * torch.tensor(verified.depth), needed(distance)
    exits = Passes(made, test).of(Settings()).exits
    labels = torch.tensor(verified.labels)
    ends = [segment.blocks[-1] + 1 for segment in made.segments]
    return {
        "seed": seed,
        "spearman": round(float(spearmanr(used, need).statistic), 4),
        "error": {"whole": round(verified.whole, 2), "ghost": round(verified.ghost, 2)},
        "shallow_error": round(100 * (1 - float(right["shallow"].float().mean())), 2),
        "blocks_used": round(float(used.mean()), 2),
        "settings": dataclasses.asdict(made.settings),
        "used_by_needed": {str(k): round(float(used[need == k].mean()), 2) for k in need.unique().tolist()},
        "accuracy": {
            **{
                f"exit behind {ends[c]} blocks": by_distance(logits.argmax(1) == labels, distance)
                for c, (logits, _) in exits.items()
            },
            "whole": by_distance(right["whole"], distance),
            "shallow": by_distance(right["shallow"], distance),
        },
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--epochs", type=float, default=RECIPE.epochs)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/control"))
    options = parser.parse_args()
    data, distance = data_of(options.examples)
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(options.seeds):
        kept = options.out / f"seed{seed}.json"
        if not kept.exists():
            kept.write_text(json.dumps(trial(seed, data, distance, options.epochs, options.out)))
        found.append(json.loads(kept.read_text()))
        print(found[-1], flush=True)
    what = (
        f"rows of {WIDTH} bits, marks 1 to {FARTHEST} apart; {BLOCKS} bottleneck blocks, {options.examples:,} examples, "
        f"{options.epochs:g} epochs at a rate of {RECIPE.lr:g}"
    )
    record("control", {"what": what, "allowed": LIMIT, "blocks": [BLOCKS, SHALLOW], "seeds": len(found), "trials": found})


if __name__ == "__main__":
    main()
