"""A ghost of a pretrained network that was fine-tuned, beside other ways to spend less depth on it: error, multiply-adds, measured time.

    deepres train --net efficientnet-lite0 --init pretrained --recipe fast-cifar --lr 0.04 --batch 64 --epochs 2 --size 96 \\
        --data ../shared/data/cifar10-jpeg --out runs/ground
    python -m benchmarks.ghost_pretrained --grounds runs/ground --data ../shared/data/cifar10-jpeg --size 96

The exit heads are fitted once to the frozen network and serve all ways. Every way chooses on the same validation examples and is
confirmed on the same further ones, to a rise of at most ``--error`` points, for each batch size anew. The test split is looked at
once. What is finished lies in ``--out`` and is not measured again. ``--grounds`` takes one run for each seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import DEVICE, record
from benchmarks.ghost import BATCHES, Coin
from deepres.data import Data, open_data
from deepres.evaluation.timing import time_against
from deepres.exits import ExitHead
from deepres.ghosting import Gate, Ghost, Point, Settings
from deepres.ghosting.candidates import Kinds, frontier
from deepres.ghosting.confirm import Verified, confirmed, last_confirmed, path_of, verify, within_error
from deepres.ghosting.fit import costs, fit_ghost
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches
from deepres.ghosting.selection import fastest
from deepres.models import open_with_data

COUNTED = 256  # test examples whose multiply-adds are counted and whose calls are timed


class EntropyHead(ExitHead):
    """The same classifier, whose confidence is 1 minus the entropy's share of its maximum (Teerapittayanon et al. 2016, BranchyNet)."""

    @classmethod
    def of(cls, head: ExitHead) -> EntropyHead:
        made = cls(head.weight.shape[1], head.weight.shape[0], copy.deepcopy(head.reader))
        made.load_state_dict(head.state_dict())
        return made.requires_grad_(False)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(self.read(signal))[0] / self.temperature
        return logits, 1 + (logits.softmax(1) * logits.log_softmax(1)).sum(1) / math.log(logits.shape[1])

    def single(self, signal: Tensor) -> tuple[np.ndarray, float]:
        logits, confidence = self(signal)
        return logits[0].numpy(), float(confidence)


class Ground:
    """One fine-tuned network with its gates and exits, and the examples to choose and to confirm on."""

    def __init__(self, folder: Path, data: Data, size: int, examples: int, confirm: int, out: Path) -> None:
        opened = open_with_data(folder, data, size=size)
        self.net, self.data = opened.model.to(DEVICE), opened.data
        self.made = Ghost(self.net)
        kept = out / f"{folder.name}-{examples}.pt"
        if not kept.exists():
            fit_ghost(self.made, self.data, examples=examples)
            torch.save((self.made.gates, self.made.exits, self.made.temperature), kept)
        self.made.gates, self.made.exits, self.made.temperature = torch.load(kept, weights_only=False)
        self.rows = list(batches(self.data, "val", examples, DEVICE, 250))
        self.further = list(batches(self.data, "val", confirm, DEVICE, 250, skip=examples))
        self.test = list(batches(self.data, "test", len(self.data.test), DEVICE, 250))

    def chosen(self, kinds: Kinds, exits: bool, rise: float) -> dict[int, Settings]:
        """For each batch size the setting that is confirmed and measured fastest."""
        made, held, fresh = self.made, Passes(self.made, self.rows), Passes(self.made, self.further)
        found = {}
        for batch in BATCHES:
            measured = costs(made, held.inputs[:batch])
            points = [one for one in frontier(held, measured, kinds=kinds) if exits or one.settings.exit_threshold is None]
            able = confirmed(within_error(points, points[0].error, rise, len(held)), held, fresh, rise, measured, log=print)
            found[batch] = fastest(made, able, points[0], held.inputs[:COUNTED], batch, print).settings
        return found

    def by_entropy(self, rise: float) -> dict[int, Settings]:
        """One threshold for all exits, which are all in use at every batch size."""
        heads = self.made.exits
        self.made.exits = nn.ModuleList(EntropyHead.of(one) if isinstance(one, ExitHead) else one for one in heads)
        held, fresh = Passes(self.made, self.rows), Passes(self.made, self.further)
        path = path_of([Point(Settings(exit_threshold=0.5), 0.0, 1.0, 1.0, 0.0)], held)
        return dict.fromkeys(BATCHES, last_confirmed(path, fresh, rise, log=print))

    def by_chance(self, rise: float) -> dict[int, Settings]:
        """Each input skips blocks at random."""
        for c, gate in enumerate(self.made.gates):
            if isinstance(gate, Gate):
                self.made.gates[c] = Coin(gate.weight.shape[1], len(gate.bias)).to(DEVICE)
        return self.chosen(("fitted",), False, rise)

    def outcome(self, settings: dict[int, Settings]) -> dict[str, Any]:
        """Error and multiply-adds on the test split, and the time of a call, relative to the whole network's, by batch size."""
        inputs = torch.cat([x for x, _ in self.test])[:COUNTED]
        found: dict[str, Any] = {}
        verified: dict[Settings, Verified] = {}
        for batch, chosen in settings.items():
            self.made.settings = chosen
            if chosen not in verified:
                verified[chosen] = verify(self.made, self.test, self.data.classes)
            seen = verified[chosen]
            ratio, (low, high) = time_against(self.net, self.made, inputs, batch)
            found[str(batch)] = {
                "settings": chosen.describe(),
                "error": round(seen.ghost, 2),
                "rise": round(seen.rise, 2),
                "lost": seen.lost,
                "won": seen.won,
                "exited": round(seen.exited, 3),
                "macs": round(_macs(self.made, inputs) / _macs(self.net, inputs), 3),
                "time": round(ratio, 3),
                "quartiles": [round(low, 3), round(high, 3)],
            }
        return found


@torch.no_grad()
def _macs(net: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        net(inputs)
    return counter.get_total_flops() // 2


WAYS: dict[str, Callable[[Ground, float], dict[int, Settings]]] = {
    "exits": lambda ground, rise: ground.chosen((), True, rise),
    "exits and gates": lambda ground, rise: ground.chosen(("fitted", "fixed"), True, rise),
    "exits, entropy threshold": lambda ground, rise: ground.by_entropy(rise),
    "random skipping": lambda ground, rise: ground.by_chance(rise),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grounds", type=Path, nargs="+", required=True, help="folders of the runs, one for each seed")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--error", type=float, default=0.2)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--confirm", type=int, default=4000)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("runs/ghost-pretrained"))
    parser.add_argument("--record", help="name of the file in benchmarks/results to write at the end [none]")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = open_data(options.data, size=options.size)
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in options.grounds:
        for way in options.ways:
            kept = options.out / f"{folder.name}-{options.examples}-{options.confirm}-{options.error:g}-{way}.json"
            if not kept.exists():
                ground = Ground(folder, data, options.size, options.examples, options.confirm, options.out)
                kept.write_text(json.dumps(ground.outcome(WAYS[way](ground, options.error))))
            rows.setdefault(way, []).append(json.loads(kept.read_text()))
            print(folder.name, way, rows[way][-1], flush=True)
    if options.record:
        what = f"{', '.join(one.name for one in options.grounds)} at {options.size} pixels"
        chosen = {"allowed": options.error, "chosen_on": options.examples, "confirmed_on": options.confirm}
        record(options.record, {"what": what, "seeds": len(options.grounds), **chosen, "ways": rows})


if __name__ == "__main__":
    main()
