"""Ghost Inference beside what else saves time at inference: same data, seeds, hardware; error and measured time.

    python -m benchmarks.shrink --data ... ; python -m benchmarks.ghost --data ...      # with the same options

It takes the networks that ``benchmarks.shrink`` trained: the whole one, the shallower one trained as long, the shrunk one.
Every way that chooses does so on the validation split, to a rise of at most ``--error`` points; the test split is only told.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import record
from benchmarks.shrink import Bench, bench_of, common_options, what
from deepres.data import Data
from deepres.evaluate import time_against
from deepres.ghost import Gate, Ghost, ghost
from deepres.ghost.choose import fastest, frontier
from deepres.ghost.confirm import confirmed, within_error
from deepres.ghost.fit import batches, costs, fit
from deepres.nn import ResNet, logits_of

CPU = torch.device("cpu")
BATCHES = (1, 32, 256)
EXITS = 0.5


class Coin(Gate):
    """Knows nothing: every block's worth is drawn anew for every input."""

    def forward(self, signal: Tensor) -> Tensor:
        return torch.rand(len(signal), len(self.bias))

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(len(features), len(self.bias)), torch.zeros(len(features), 1, dtype=torch.bool)


def by_chance(net: nn.Module, data: Data, rise: float, examples: int) -> Ghost:
    """Blocks skipped at random, as many as the validation error bears."""
    torch.manual_seed(0)
    made = Ghost(net)
    fit(made, data, exits=False, examples=64)
    for c, gate in enumerate(made.gates):
        if isinstance(gate, Gate):
            made.gates[c] = Coin(gate.weight.shape[1], len(gate.bias))
    held = list(batches(data, "val", examples, CPU, 250))
    points = frontier(made, held, costs(made, held[0][0][:32]), kinds=("fitted",))
    fresh = list(batches(data, "val", len(data.val), CPU, 250, skip=examples))
    able = confirmed(made, within_error(points, points[0].error, rise, examples), fresh, rise)
    fastest(made, able, points[0], held[0][0], 32)
    return made


def trained_with_exits(bench: Bench, seed: int) -> ResNet:
    """The whole network, its exits in the loss from the start."""
    how = dataclasses.replace(bench.recipe(bench.epochs), exits=EXITS)
    bench.train("exits", seed, bench.fresh(seed), how)
    return bench.model("exits", seed)


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--error", type=float, default=0.2)
    parser.add_argument("--examples", type=int, default=1000)
    options = parser.parse_args()
    bench = bench_of(options)
    data = bench.data
    test = list(batches(data, "test", len(data.test), CPU, 250))
    inputs = torch.cat([x for x, _ in test[:3]])

    def made(net: ResNet, **more: object) -> Ghost:
        found = ghost(net, data, error=options.error, examples=options.examples, confirm=len(data.val), **more)  # type: ignore[arg-type]
        return found.model

    ways: dict[str, Callable[[int], nn.Module]] = {
        "ghost": lambda s: made(bench.model("whole", s)),
        "exits alone": lambda s: made(bench.model("whole", s), gates="none"),
        "gates alone": lambda s: made(bench.model("whole", s), gates="fitted", exits=False),
        "lesion profile, no training": lambda s: made(bench.model("whole", s), gates="fixed", exits=False),
        "random skipping": lambda s: by_chance(bench.model("whole", s), data, options.error, options.examples),
        "shallower, trained as long": lambda s: bench.model(f"shallow-{options.blocks}", s),
        "exits trained with the network": lambda s: trained_with_exits(bench, s),
        "ghost of that": lambda s: made(trained_with_exits(bench, s)),
        "shrunk": lambda s: bench.model(f"inverse-{options.blocks}", s),
        "ghost of the shrunk": lambda s: made(bench.model(f"inverse-{options.blocks}", s)),
    }
    table: dict[str, object] = {}
    wholes = [error_of(bench.model("whole", seed), test) for seed in range(options.seeds)]
    for name, way in ways.items():
        errors, times = [], {batch: [] for batch in BATCHES}  # type: ignore[var-annotated]
        for seed in range(options.seeds):
            net, whole = way(seed), bench.model("whole", seed)
            errors.append(error_of(net, test))
            for batch, ratio in times_by_batch(whole, net, inputs).items():
                times[batch].append(ratio)
        rises = [a - b for a, b in zip(errors, wholes, strict=True)]
        table[name] = {
            "test_error": round(statistics.fmean(errors), 3),
            "errors": [round(e, 2) for e in errors],
            "rise": round(statistics.fmean(rises), 3),
            "rises": [round(r, 2) for r in rises],
            **{f"time_batch_{b}": round(statistics.fmean(v), 3) for b, v in times.items()},
            "times": {str(b): [round(t, 3) for t in v] for b, v in times.items()},
        }
        print(name, table[name], flush=True)
    whole = {"test_error": round(statistics.fmean(wholes), 3), "errors": [round(e, 2) for e in wholes]}
    record(
        f"ghost-{options.net.removesuffix('-cifar')}",
        {
            "what": what(options.net, data, options.epochs),
            "seeds": options.seeds,
            "allowed": options.error,
            "whole": whole,
            "ways": table,
        },
    )


def times_by_batch(whole: nn.Module, net: nn.Module, inputs: Tensor) -> dict[int, float]:
    """Of a call, against the whole network's."""
    used = {1: 48, 32: 256, 256: 512}
    return {batch: time_against(whole, net, inputs[: used[batch]], batch)[0] for batch in BATCHES}


@torch.no_grad()
def error_of(net: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    """%"""
    right = sum(int((logits_of(net, x).argmax(1) == y).sum()) for x, y in test)
    return 100 * (1 - right / sum(len(y) for _, y in test))


if __name__ == "__main__":
    main()
