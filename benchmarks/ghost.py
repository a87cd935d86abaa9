"""Ghost Inference beside what else saves time at inference: same data, seeds, hardware; error and measured time.

    python -m benchmarks.shrink --data ... ; python -m benchmarks.ghost --data ...      # with the same options

It takes the networks that ``benchmarks.shrink`` trained: the whole one, the shallower one trained as long, the shrunk one.
Every way that chooses does so on the validation split, to a rise of at most ``--error`` points, for each batch size anew, as one
would for a service; one takes the time of the shallower network instead, and is compared by its error. The test split is only told.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common import DEVICE, record, result_name
from benchmarks.shrink import Bench, bench_of, common_options, what
from deepres.adapters import logits_of
from deepres.data import Data
from deepres.errors import DeepresError
from deepres.evaluation import time_against
from deepres.ghosting import Gate, Ghost, Point, Settings
from deepres.ghosting.candidates import Kinds, frontier
from deepres.ghosting.confirm import confirmed, verify, within_error
from deepres.ghosting.fit import Costs, costs, fit_ghost
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches
from deepres.ghosting.selection import fastest, within_budget
from deepres.nn import ResNet

BATCHES = (1, 32, 256)
EXITS = 0.5
KINDS: Kinds = ("fitted", "fixed")
GATED = "whole"  # the only network of whose gates a way makes use
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Coin(Gate):
    """Knows nothing: every block's worth is drawn anew for every input."""

    def forward(self, signal: Tensor) -> Tensor:
        return self.linear(signal)[0]

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        n, device = len(features), features.device
        return torch.rand(n, len(self.bias), device=device), torch.zeros(n, 1, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Way:
    """How a setting is found for a network, at each batch size; without ``kinds`` and ``exits`` the network is timed as it is."""

    net: str  # of the networks that ``Bench`` has
    kinds: Kinds = ()
    exits: bool = False
    chance: bool = False  # gates that know nothing
    within: str | None = None  # another way, whose time bounds this one's instead of a rise of the error

    @property
    def chooses(self) -> bool:
        return bool(self.kinds) or self.exits

    def may(self, settings: Settings) -> bool:
        """Whether it has what ``settings`` make use of."""
        kind: Literal["fitted", "fixed"] = "fixed" if settings.fixed else "fitted"
        return (settings.skip_threshold is None or kind in self.kinds) and (settings.exit_threshold is None or self.exits)


@dataclass(frozen=True, eq=False)
class Tried:
    """All settings of one ghost that were tried, at each batch size; the ways choose among them."""

    made: Ghost
    held: Passes
    fresh: Passes
    points: dict[int, list[Point]]
    costs: dict[int, Costs]

    @classmethod
    def of(cls, bench: Bench, net: str, seed: int, examples: int, *, chance: bool = False) -> Tried:
        made, kinds = fitted(bench, net, seed, examples), KINDS
        if chance:
            kinds, made.exits = ("fitted",), nn.ModuleList(nn.Identity() for _ in made.exits)
            for c, gate in enumerate(made.gates):
                if isinstance(gate, Gate):
                    made.gates[c] = Coin(gate.weight.shape[1], len(gate.bias)).to(DEVICE)
        held = Passes(made, list(batches(bench.data, "val", examples, DEVICE, 250)))
        fresh = Passes(made, list(batches(bench.data, "val", len(bench.data.val), DEVICE, 250, skip=examples)))
        measured = {batch: costs(made, held.inputs[:batch]) for batch in BATCHES}
        points = {batch: frontier(held, one, kinds=kinds) for batch, one in measured.items()}
        return cls(made, held, fresh, points, measured)

    def points_of(self, way: Way) -> dict[int, list[Point]]:
        """Those that a way may choose among."""
        return {batch: [point for point in every if way.may(point.settings)] for batch, every in self.points.items()}

    def settings(self, way: Way, rise: float, budgets: dict[int, float]) -> dict[int, Settings]:
        """The setting that is confirmed and measured fastest at each batch size, or of least error within a budget of time."""
        found, inputs = {}, self.held.inputs[:256]
        for batch, points in self.points_of(way).items():
            if batch in budgets:
                found[batch] = within_budget(self.made, points, budgets[batch], inputs, batch, print).settings
                continue
            within = within_error(points, points[0].error, rise, len(self.held))
            able = confirmed(within, self.held, self.fresh, rise, self.costs[batch])
            found[batch] = fastest(self.made, able, points[0], inputs, batch).settings
        return found


def fitted(bench: Bench, net: str, seed: int, examples: int) -> Ghost:
    """With the gates and exits that were fitted once for all ways."""
    kept = bench.path(f"ghost of {net}, {examples}", seed).with_suffix(".pt")
    torch.manual_seed(0)
    made = Ghost(network(bench, net, seed))
    if not kept.exists():
        fit_ghost(made, bench.data, examples=examples, gates=net == GATED)
        torch.save((made.gates, made.exits, made.temperature), kept)
    made.gates, made.exits, made.temperature = torch.load(kept, weights_only=False)
    return made


def network(bench: Bench, net: str, seed: int) -> ResNet:
    """``"exits"`` and ``"exits-N"``, the whole network and one of N blocks, have exits in the loss from the start.

    They are trained if they were not.
    """
    name, _, blocks = net.partition("-")
    if name == "exits":
        shape = (int(blocks) // 3,) * 3 if blocks else None
        bench.train(net, seed, bench.fresh(seed, shape), dataclasses.replace(bench.recipe(bench.epochs), exits=EXITS))
    return bench.model(net, seed)


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--error", type=float, default=0.2)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--ways", nargs="+", help="beginnings of the names of those to take [all]")
    parser.add_argument("--no-budgets", action="store_true", help="leave out the table by budget")
    options = parser.parse_args()
    bench = bench_of(options)
    data = bench.data
    test = list(batches(data, "test", len(data.test), DEVICE, 250))
    ways = {
        "ghost": Way("whole", KINDS, True),
        "exits alone": Way("whole", exits=True),
        "gates alone": Way("whole", ("fitted",)),
        "lesion profile, no training": Way("whole", ("fixed",)),
        "random skipping": Way("whole", ("fitted",), chance=True),
        "shallower, trained as long": Way(f"shallow-{options.blocks}"),
        "shallower, and exits": Way(f"shallow-{options.blocks}", exits=True),
        "in the time of the shallower, a ghost": Way("whole", KINDS, True, within="shallower, trained as long"),
        "exits trained with the network": Way("exits"),
        "exits trained with the network, and used": Way("exits", exits=True),
        "exits trained with the shallower": Way(f"exits-{options.blocks}"),
        "exits trained with the shallower, and used": Way(f"exits-{options.blocks}", exits=True),
        "shrunk": Way(f"inverse-{options.blocks}"),
        "shrunk, and exits": Way(f"inverse-{options.blocks}", exits=True),
    }
    table: dict[str, dict[str, dict[str, Any]]] = {}

    @functools.cache
    def trial(net: str, seed: int, chance: bool) -> Tried:
        return Tried.of(bench, net, seed, options.examples, chance=chance)

    wholes = [error_of(bench.model("whole", seed), test) for seed in range(options.seeds)]
    for name, way in ways.items():
        if options.ways and not name.startswith(tuple(options.ways)):
            continue
        if way.within and way.within not in table:
            parser.error(f"{name} needs the times of: {way.within}; add it to --ways")
        budgets = {int(batch): float(one["time"]) for batch, one in table.get(way.within or "", {}).items()}
        seeds: list[dict[str, dict[str, float]]] = []
        for seed in range(options.seeds):
            kept = bench.out / f"ghost, {name}, {seed}.json"  # delete it to measure anew
            if not kept.exists():
                net: nn.Module = network(bench, way.net, seed)
                settings = dict.fromkeys(BATCHES, Settings())
                if way.chooses:
                    one = trial(way.net, seed, way.chance)
                    net, settings = one.made, one.settings(way, options.error, budgets)
                whole = bench.model("whole", seed)
                found = outcomes(net, settings, whole, wholes[seed], data, test)
                kept.write_text(json.dumps(found))
                print(name, seed, found, flush=True)
            seeds.append(json.loads(kept.read_text()))
        table[name] = {batch: summary([one[batch] for one in seeds]) for batch in seeds[0]}
        print(name, table[name], flush=True)
    kept = bench.out / "ghost, budgets.json"
    if not (kept.exists() or options.no_budgets):
        kept.write_text(
            json.dumps(by_budget(trial("whole", 0, False), ways["exits alone"], bench.model("whole", 0), data, test))
        )
    errors = {"test_error": round(statistics.fmean(wholes), 3), "errors": [round(e, 2) for e in wholes]}
    record(
        result_name("ghost", options.net, options.size),
        {
            "what": what(options.net, data, options.epochs),
            "seeds": options.seeds,
            "allowed": options.error,
            "whole": errors,
            "ways": table,
            **({"budgets": json.loads(kept.read_text())} if kept.exists() else {}),
        },
    )


def by_budget(
    tried: Tried, way: Way, net: nn.Module, data: Data, test: list[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, dict[str, float] | None]]:
    """For each batch size and budget of time: the share that is taken on the test split, and the error; None: it is refused."""
    made, found = tried.made, dict[str, dict[str, dict[str, float] | None]]()
    for batch, points in tried.points_of(way).items():
        for budget in BUDGETS:
            made.settings = Settings()
            try:
                if budget < 1:
                    within_budget(made, points, budget, tried.held.inputs[:256], batch, lambda text: None)
            except DeepresError:
                found.setdefault(str(batch), {})[f"{budget:g}"] = None
                continue
            seen = {"time": times_by_batch(net, made, test, (batch,))[batch], "error": verify(made, test, data.classes).ghost}
            found.setdefault(str(batch), {})[f"{budget:g}"] = {key: round(value, 3) for key, value in seen.items()}
    return found


def outcomes(
    net: nn.Module, settings: dict[int, Settings], whole: nn.Module, error: float, data: Data, test: list[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, float]]:
    """By batch size: error and blocks on the test split, and the time against the whole network's."""
    seen: dict[Settings, tuple[float, float]] = {}
    found = {}
    for batch, chosen in settings.items():
        if isinstance(net, Ghost):
            net.settings = chosen
        if chosen not in seen:
            if isinstance(net, Ghost):
                verified = verify(net, test, data.classes)
                seen[chosen] = verified.ghost, verified.blocks
            else:
                seen[chosen] = error_of(net, test), 1.0
        here, blocks = seen[chosen]
        took = times_by_batch(whole, net, test, (batch,))[batch]
        found[str(batch)] = {"error": here, "rise": here - error, "blocks": blocks, "time": took}
    return found


def summary(seeds: list[dict[str, float]]) -> dict[str, Any]:
    """Means, and each seed's."""
    means = {key: round(statistics.fmean(one[key] for one in seeds), 3) for key in seeds[0]}
    return {**means, "rises": [round(one["rise"], 2) for one in seeds], "times": [round(one["time"], 3) for one in seeds]}


def times_by_batch(
    whole: nn.Module, net: nn.Module, test: list[tuple[Tensor, Tensor]], batches: Sequence[int] = BATCHES
) -> dict[int, float]:
    """Of a call, against the whole network's."""
    inputs = torch.cat([x for x, _ in test[:3]])
    used = {1: 256, 32: 512, 256: 512}  # so many that easy and hard ones come in their proportion
    return {batch: time_against(whole, net, inputs[: used[batch]], batch)[0] for batch in batches}


@torch.no_grad()
def error_of(net: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    """%"""
    right = sum(int((logits_of(net, x).argmax(1) == y).sum()) for x, y in test)
    return 100 * (1 - right / sum(len(y) for _, y in test))


if __name__ == "__main__":
    main()
