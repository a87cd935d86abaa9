"""``deepres optimize``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from deepres.cli.common import check_out, keywords, say, table
from deepres.cli.parsing import BuilderOption
from deepres.engines.options import OptimizeOptions
from deepres.errors import DeepresError
from deepres.models.options import OpenOptions
from deepres.options import DeviceOption

if TYPE_CHECKING:
    import torch

    from deepres.data import Data
    from deepres.engines import Optimized


NOISE = 64  # inputs without data


@dataclass(frozen=True, kw_only=True)
class Optimize(DeviceOption, BuilderOption, OpenOptions, OptimizeOptions):
    """Find the fastest engine of this machine that keeps a network's answers, and measure it beside all others."""

    model: Positional[str]  # a name, a run's folder, a weights file or a ghost's folder
    # data of the network: validation images to compare answers on, training images to calibrate int8 [noise, and no int8]
    data: str | None = None
    batch: int = 32  # images of a pass
    # folder to keep the choice in, for `serve --engine FOLDER` and `deepres.engines.build_choice` [it is not kept]
    out: Path | None = None

    def run(self) -> int:
        from deepres.engines import optimize

        if self.batch < 1 or not (self.seconds >= 0 and self.error >= 0):
            given = f"{self.batch}, {self.seconds:g} and {self.error:g}"
            raise DeepresError(f"--batch is at least 1, --seconds and --error at least 0, not {given}")
        if self.data is None and self.error != OptimizeOptions.error:
            raise DeepresError("--error limits what changes on validation images; give --data too, or leave it out")
        check_out(self.out)
        model, images, data = self._network()
        asked = keywords(self, OptimizeOptions) | {"images": images, "data": data, "measure": True, "log": _progress}
        if data is None and self.answers == "auto" and images.device.type == "cpu":
            asked["answers"] = "exact"  # what noise costs and changes says nothing of photographs
        fast = optimize(model, images[: self.batch], **asked)
        _print(fast)
        other = "close" if fast.choice.answers == "exact" else "exact"
        if fast.advice and sys.stdin is not None and sys.stdin.isatty() and _wants(other):
            fast = optimize(model, images[: self.batch], **{**asked, "answers": other, "again": False})
            say(f"{fast.choice}, batch {fast.choice.shape[0]}")
        if self.out is not None:
            fast.save(self.out)
            say(f"the choice is kept in {self.out}")
        return 0

    def _network(self) -> tuple[torch.nn.Module, torch.Tensor, Data | None]:
        """The network on its device, inputs (N, C, H, W) of at least a batch, and the data that they are of."""
        import torch

        from deepres import models
        from deepres.engines.inputs import validation_images
        from deepres.ghosting import ghost_or_reference
        from deepres.training.distribute import pick_device

        device = pick_device(self.device)
        model = ghost_or_reference(self.model)
        if self.data is not None:
            pair = models.open_with_data(model, self.data, weights=self.weights, size=self.size)
            pair.need_fit()
            return pair.model.to(device), validation_images(pair.data, at_least=self.batch).to(device), pair.data
        opened = models.open_model(model, weights=self.weights)
        say(
            "without --data, answers are compared on noise, which has more close calls than photographs; exact or close is not chosen by it"
        )
        prepare = opened.preparation(self.size)
        noise = prepare.example(max(self.batch, NOISE), torch.Generator().manual_seed(0))
        return opened.model.to(device), noise.to(device), None


def _progress(text: str) -> None:
    print(f"deepres: {text}", file=sys.stderr)


def _wants(other: str) -> bool:
    default = "exact" if other == "close" else "close"
    try:
        return input(f"answers, exact or close? [{default}] ").strip().lower() == other
    except EOFError:  # Ctrl-D
        return False


def _print(fast: Optimized) -> None:
    from rich.console import Console

    from deepres.engines.compare import AS_IS, BESIDE

    rows = []
    for one in fast.candidates:
        if one.problem:
            rows.append([one.name, "", "", "", "", f"not run: {one.problem}"])
            continue
        speed = f"{one.rate:,.1f} ({one.lowest:,.1f} to {one.highest:,.1f})"
        if one.engine in BESIDE:
            name = "the network as it is" if one.engine == AS_IS else f"the whole network, {one.precision}"
            rows.append([name, "", speed, f"{one.ratio:.2f}", "", ""])
            continue
        chosen = (one.engine, one.precision, one.answers) == (fast.choice.engine, fast.choice.precision, fast.choice.answers)
        changed = f"{one.changed} of {one.images}" + ("" if one.rise is None else f", error {one.rise:+.2f}")
        kind = "" if one.precision == "float32" else one.answers
        rows.append([one.name, kind, speed, f"{one.ratio:.2f}", changed, "chosen" if chosen else ""])
    Console(width=None).print(table(["engine", "answers", "images/s", "ratio", "answers changed", ""], rows))
    say(f"{fast.choice}, batch {fast.choice.shape[0]}")
    even = next((one.level for one in fast.candidates if one.chosen(fast.choice.shape) == fast.choice), ())
    if even:
        say(f"about as fast, and not told apart in the time given: {', '.join(even)}; --again --seconds N measures for longer")
    if fast.slower_than_whole:
        say(fast.slower_than_whole)
    if fast.advice:
        say(fast.advice.replace("answers='close'", "--answers close").replace("answers='exact'", "--answers exact"))
