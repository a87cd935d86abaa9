"""``ghost``: makes a ghost of a trained network, within a budget of time or a rise of the error; ``save_ghost``, ``load_ghost``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepres.adapters import device_of
from deepres.data import Data
from deepres.deprecation import renamed, renamed_fields
from deepres.errors import DeepresError
from deepres.exits import ExitHead
from deepres.ghosting.candidates import Kinds, frontier
from deepres.ghosting.confirm import Verified, confirmed, verify, within_error
from deepres.ghosting.fit import costs, fit_ghost
from deepres.ghosting.gates import Gate
from deepres.ghosting.model import Ghost
from deepres.ghosting.options import GateChoice, GhostOptions
from deepres.ghosting.points import Point
from deepres.ghosting.recorded import Passes
from deepres.ghosting.recording import batches
from deepres.ghosting.selection import fastest, keeps_deadline, time_against_whole, within_budget
from deepres.ghosting.settings import Settings
from deepres.models import is_ours, load, need_layers, notes, open_with_data, save
from deepres.models.options import OpenOptions
from deepres.models.store import GHOST_FILE, write_tensors

NET, HEADS, STATIC, FILE = "net.safetensors", GHOST_FILE, "static.safetensors", "ghost.json"
_HEADER = "ghost"  # key of the settings in the metadata of HEADS
BATCH_SIZE = 250  # examples of a pass that is not timed
_KINDS: dict[str, Kinds] = {"both": ("fitted", "fixed"), "fitted": ("fitted",), "fixed": ("fixed",), "none": ()}


@renamed_fields(kept="deadline_kept")
@dataclass(frozen=True)
class GhostResult:
    """A ghost with its measurements. Times are relative to the whole network, measured in alternating turns."""

    model: Ghost
    point: Point  # the selected settings on the validation split
    points: tuple[Point, ...]  # all settings that were tried there
    whole_error: float  # of the network on the validation split, %
    verified: Verified  # on the test split, which is measured once
    times: dict[int, tuple[float, float, float]]  # batch -> (median of the ratios, and their quartiles)
    deadline_kept: tuple[float, float] | None = (
        None  # (share of single-input calls within the deadline, seconds of the slowest)
    )
    data: Data | None = field(default=None, repr=False, compare=False)
    unconfirmed: float | None = None  # allowed rise of the error in points, if no examples were left to confirm it on

    @property
    def static(self) -> bool:
        """Return whether the same blocks run for every input, so that ``model.static()`` computes the same."""
        return self.model.settings.fixed and self.model.settings.exit_threshold is None

    def summary(self) -> list[str]:
        """Describe the result in sentences, with its figures and assumptions."""
        seen, settings = self.verified, self.model.settings
        if settings.whole:
            lines = ["The ghost is the whole network, to the bit: no other setting met the requirement, or the budget was 1."]
        else:
            lines = [
                f"Selected: {settings.describe()}.",
                f"On the test split of {seen.n:,} examples the error is {seen.ghost:.2f} %, the whole network's {seen.whole:.2f} % "
                f"({seen.rise:+.2f} points: {seen.lost} right answers lost, {seen.won} won).",
                f"With 95 % confidence at most {seen.bound:.2f} % of inputs lose their right answer (Clopper-Pearson, one-sided; it "
                "assumes that inputs are drawn independently from the distribution of the test split, which was not used for selection).",
                f"{100 * seen.blocks:.0f} % of the blocks ran, {100 * seen.exited:.0f} % of the inputs exited early, and "
                f"{100 * seen.recomputed:.1f} % were recomputed by the whole network.",
            ]
        if self.unconfirmed is not None and not settings.whole:
            lines.append(
                f"A rise of the error of at most {self.unconfirmed:g} points was not confirmed, because all validation examples were used "
                "for selection. Give fewer --examples, or a larger validation split."
            )
        if seen.rise < -0.5 and settings.exit_threshold is not None:
            lines.append(
                "The exits, which also learn from the labels, have a lower error than the network; longer training would improve it."
            )
        if self.static:
            lines.append(
                f"The same blocks run for every input. {STATIC} holds them as an ordinary network, to compile or export."
            )
        for batch, (ratio, low, high) in self.times.items():
            lines.append(
                f"At batch {batch} a call takes {100 * ratio:.0f} % of the whole network's time (middle half of the turns "
                f"{100 * low:.0f} to {100 * high:.0f} %), gates, exits and gathers included."
            )
        if self.deadline_kept is not None:
            share, slowest = self.deadline_kept
            lines.append(
                f"{100 * share:.0f} % of 100 calls with one input kept the deadline of {1000 * (self.model.deadline or 0):.1f} ms; the "
                f"slowest took {1000 * slowest:.1f} ms. This is a measurement, not a guarantee: an operating system guarantees no times."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without the network and without figures of single inputs."""
        return {
            "settings": dataclasses.asdict(self.model.settings),
            "point": dataclasses.asdict(self.point),
            "whole_error": self.whole_error,
            "verified": {k: v for k, v in dataclasses.asdict(self.verified).items() if k not in ("depth", "right", "labels")},
            "deadline": self.model.deadline,
            "deadline_kept": self.deadline_kept,
            "unconfirmed": self.unconfirmed,
            "times": {str(batch): list(values) for batch, values in self.times.items()},
            "points": [dataclasses.asdict(point) for point in self.points],
        }


@renamed(watch="progress", say="log")
def ghost(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    *,
    budget: float | None = GhostOptions.budget,
    error: float | None = GhostOptions.error,
    deadline: float | None = GhostOptions.deadline,
    batch: int = GhostOptions.batch,
    gates: GateChoice = GhostOptions.gates,
    exits: bool = GhostOptions.exits,
    examples: int = GhostOptions.examples,
    confirm: int = GhostOptions.confirm,
    confidence: float = GhostOptions.confidence,
    weights: str | Path | None = OpenOptions.weights,
    size: int | None = OpenOptions.size,
    device: torch.device | str | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
    log: Callable[[str], None] = lambda text: None,
) -> GhostResult:
    """Make a ghost of a trained network by fitting gates and exits to it, which takes minutes.

    >>> made = deepres.ghost("runs/r56", "cifar10", budget=0.6)
    >>> made.model(images)  # called like the network

    ``GhostOptions`` explains the options; give either ``budget`` or ``error``. A budget of 1.0 gives the network itself, to the bit.
    Settings are selected on the validation split and reported on the test split. ``device``: device to compute on; None: that of the
    network. The given network is not moved.

    ``progress`` receives (task, share done), ``log`` remarks of one sentence each.

    Raises ``DeepresError`` for a network without weights or without blocks that can be skipped, for one that does not classify the
    data's classes, for data without training examples, and for a budget or a deadline that cannot be kept.
    """
    _check(budget, error, deadline, batch, gates, exits, examples, confirm, confidence)
    net, opened = _open(model, data, weights, size, log)
    place = torch.device(device) if device is not None else device_of(net)
    made = Ghost(net)
    made.net.to(place)
    fit_ghost(made, opened, gates=gates != "none", exits=exits, examples=examples, progress=progress)
    held = Passes(made, list(batches(opened, "val", examples, place, BATCH_SIZE)))
    inputs = held.inputs[: max(batch, 256)].clone()  # so that the others' memory is freed
    if len(inputs) < batch:
        log(f"of {len(inputs)} validation examples there is no batch of {batch}, so calls are timed at batch {len(inputs)}")
        batch = len(inputs)
    measured = costs(made, inputs[:batch])
    points = frontier(held, measured, kinds=_KINDS[gates], progress=progress)
    whole, unconfirmed = points[0], None
    if budget is not None and budget >= 1:
        chosen = whole
    elif budget is not None:
        chosen = within_budget(made, points, budget, inputs, batch, log)
    else:
        assert error is not None
        fresh = Passes(made, list(batches(opened, "val", confirm, place, BATCH_SIZE, skip=examples)))
        kinds = within_error(points, whole.error, error, len(held) if len(fresh) else 0)
        chosen = fastest(made, confirmed(kinds, held, fresh, error, measured, confidence, log), whole, inputs, batch, log)
        unconfirmed = None if len(fresh) else error
    made.settings = chosen.settings
    verified = verify(made, batches(opened, "test", len(opened.test), place, BATCH_SIZE), opened.classes)
    times = {}
    for many in sorted({1, batch, 256} if len(inputs) >= 256 else {1, batch}):
        ratio, (low, high) = time_against_whole(made, inputs[: max(many, 64)], many)
        times[many] = (ratio, low, high)
    in_time = None
    if deadline is not None:
        made.deadline = deadline
        in_time = keeps_deadline(made, inputs[:64], 1)
        if in_time[0] < 0.5:
            raise DeepresError(
                f"the deadline of {1000 * deadline:g} ms was kept by {100 * in_time[0]:.0f} % of the calls, and the slowest took "
                f"{1000 * in_time[1]:.1f} ms: the first exit of this network is reached later; give a longer deadline"
            )
    return GhostResult(made, chosen, tuple(points), whole.error, verified, times, in_time, opened, unconfirmed)


def _check(
    budget: float | None,
    error: float | None,
    deadline: float | None,
    batch: int,
    gates: GateChoice,
    exits: bool,
    examples: int,
    confirm: int,
    confidence: float,
) -> None:
    if (budget is None) == (error is None):
        raise DeepresError(
            "give either budget, a share of the time such as 0.6, or error, an allowed rise in points such as 0.3"
        )
    if budget is not None and not 0 < budget <= 1:
        raise DeepresError(f"budget is a share of the whole network's time, above 0 and at most 1, not {budget:g}")
    if error is not None and not error >= 0:
        raise DeepresError(f"error is the allowed rise in points, 0 or more, not {error:g}")
    if deadline is not None and not deadline > 0:
        raise DeepresError(f"deadline is a time above 0, not {1000 * deadline:g} ms")
    if deadline is not None and not exits:
        raise DeepresError("a deadline is kept by early exits, so it needs them; leave out --no-exits (in Python, exits=False)")
    if gates not in _KINDS:
        raise DeepresError(f"gates is one of {', '.join(_KINDS)}, not {gates}")
    if gates == "none" and not exits:
        raise DeepresError("without gates and without exits no time can be saved; allow one of them")
    if batch < 1:
        raise DeepresError(f"batch is at least 1, not {batch}")
    if examples < 2 or confirm < 0:
        raise DeepresError(f"examples is at least 2 and confirm at least 0, not {examples} and {confirm}")
    if not 0.5 <= confidence < 1:
        raise DeepresError(f"confidence is at least 0.5 and below 1, not {confidence:g}")


def _open(
    model: nn.Module | str | Path,
    data: Data | str | Path,
    weights: str | Path | None,
    size: int | None,
    log: Callable[[str], None],
) -> tuple[nn.Module, Data]:
    if not isinstance(model, nn.Module) and weights is None and is_ours(str(model)):
        raise DeepresError(f"{model}: no such run or file; give a trained network")
    paired = open_with_data(model, data, weights=weights, size=size)
    paired.opened.need_weights()
    need_layers(paired.model, paired.opened.name)
    paired.need_fit()
    paired.data.need_training()
    if paired.data.is_text:
        raise DeepresError(
            f"{paired.opened.name}: a ghost classifies whole inputs; a language model gives an answer for every token, so `deepres "
            "shrink` is the way to less depth"
        )
    for remark in paired.remarks:
        log(remark)
    return paired.model, paired.data


def save_ghost(made: GhostResult, out: str | Path, **noted: Any) -> Path:
    """Write the network, its gates and exits, and the measurements into the folder ``out``, which ``load_ghost`` reads.

    ``noted``: further JSON values to store with the network. Raises ``DeepresError`` for a network of a class that cannot be built
    again from a file, and for a file that cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    ghost = made.model
    net = ghost.net
    if made.data is not None:
        noted = {"classes": list(made.data.classes), "prepare": made.data.prepare.to_notes(), **noted}
    ghost.route(False)
    save(net, out / NET, **noted)
    if made.static:
        save(ghost.static(), out / STATIC, **noted)
    else:
        (out / STATIC).unlink(missing_ok=True)  # of an earlier ghost in this folder
    tensors = {f"gates.{k}": v.contiguous().cpu() for k, v in ghost.gates.state_dict().items()}
    tensors |= {f"exits.{k}": v.contiguous().cpu() for k, v in ghost.exits.state_dict().items()}
    header = {
        "settings": dataclasses.asdict(ghost.settings),
        "most": max(len(segment.blocks) for segment in ghost.segments),
        "ahead": ghost.time_to_next,
        "temperature": ghost.temperature,
        "deadline": ghost.deadline,
    }
    write_tensors(out / HEADS, tensors or {"none": torch.zeros(1)}, json.dumps(header), key=_HEADER)
    (out / FILE).write_text(json.dumps(made.to_dict(), indent=1))
    return out


def load_ghost(folder: str | Path) -> tuple[Ghost, dict[str, Any]]:
    """Load a ghost from its folder: (the ghost, the values that were stored with its network).

    Raises ``DeepresError`` if the folder holds no ghost.
    """
    folder = Path(folder)
    try:
        with safe_open(folder / HEADS, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        settings, most, deadline = Settings.from_dict(header["settings"]), header["most"], header["deadline"]
        times = [(float(base), float(each)) for base, each in header["ahead"]]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DeepresError(f"{folder}: holds no readable ghost ({error}); make one with `deepres ghost`") from error
    made = Ghost(load(folder / NET), settings, most=most)
    made.time_to_next, made.deadline, made.temperature = times, deadline, header.get("temperature", 1.0)
    for kind, modules in (("gates", made.gates), ("exits", made.exits)):
        for c in range(len(made.segments)):
            mine = {k.removeprefix(f"{kind}.{c}."): v for k, v in tensors.items() if k.startswith(f"{kind}.{c}.")}
            if not mine:
                continue
            outputs, features = mine["weight"].shape
            head = Gate(features, outputs) if kind == "gates" else ExitHead.from_state(mine)
            head.load_state_dict(mine)
            modules[c] = head.requires_grad_(False)
    return made, notes(folder / NET)
