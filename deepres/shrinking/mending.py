"""Mending in closed form: the layers in front of deleted blocks take over what can be fitted of these, before any training.

Let ``u = s + f`` be the signal that a residual block passes on, with its shortcut s and its branch's output f, and y the signal that
the whole network has behind the blocks that were deleted after it. The map T and the shift c that minimise
``|y - (s + T f + c)|^2`` over training examples are found by least squares and folded into the layers that write f, so the result
has no layer more. For a Transformer this is ReplaceMe (Shopkhoev et al. 2025), for a convolutional network the same over channels.
T = 1, c = 0 is the deletion alone, so on the examples of the fit no fit is worse than that.

Where the block ends in a ReLU, y is replaced by ``min(u, 0)`` where it is zero, since all negative sums give the same signal. The
error of the signal behind the ReLU is at most that of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import Block, Observation, Site, kept_modes, logits_of
from deepres.adapters.calls import signal_in
from deepres.adapters.surgery import norms_behind
from deepres.shrinking.features import block_before
from deepres.shrinking.least_squares import LeastSquares
from deepres.shrinking.options import Mend
from deepres.shrinking.writer import Writer
from deepres.training import Trainer

EXAMPLES = 2560  # training examples on which a gap is fitted
TOLERANCE = 1e-3  # largest difference between a folded and an unfolded fit, relative to the largest value


@dataclass(frozen=True)
class Mended:
    """A fit that stands in the place of a run of deleted blocks."""

    removed: list[str]  # paths in the whole network
    writer: str  # path, in the whole network, of the block whose last layers were changed
    before: float  # root mean square difference to the whole network's signal behind the gap, relative to it, by deletion alone
    after: float  # the same with the fit


@dataclass(frozen=True, eq=False)
class Gap:
    """A run of blocks to be deleted, and the block in front of it."""

    removed: list[str]
    path: str  # of the block in front, in the whole network
    block: nn.Module
    site: Site | None  # its last one; None for a block without a shortcut
    channels_last: bool  # whether the signal's last dimension holds the channels


def find_gaps(model: nn.Module, blocks: Sequence[Block], gone: Collection[str]) -> list[Gap]:
    """The runs of blocks at ``gone`` in ``model``, which still has them, in order. A run at the beginning of its list has no gap."""
    last = {block.path: block.sites[-1] for block in blocks}
    runs: dict[str, list[str]] = {}
    for block in blocks:
        before = block_before(model, block.path, gone)
        if block.path in gone and before is not None and not norms_behind(block.sites[0].block):
            runs.setdefault(before, []).append(block.path)
    return [
        Gap(removed, path, model.get_submodule(path), last.get(path), last[removed[-1]].layout != "NCHW")
        for path, removed in runs.items()
    ]


@torch.no_grad()
def mend(trainer: Trainer, whole: nn.Module, gaps: Sequence[Gap], kind: Mend, log: Callable[[str], None]) -> list[Mended]:
    """Fit and fold each gap of ``trainer.model``, whose blocks are deleted already, from the input to the output.

    A later fit sees the signals that the earlier ones left. What cannot be folded exactly is left as the deletion made it, and ``log``
    receives the reason.
    """
    model = trainer.model
    found = []
    with kept_modes(model):
        model.eval()
        whole.eval()
        for gap in gaps:
            name = ", ".join(gap.removed)
            branch = gap.site.branch_modules if gap.site is not None else [gap.block]
            writer = Writer.find(branch)
            after = gap.site.activation if gap.site is not None else None
            shared = writer is not None and _is_shared(model, writer)
            if (
                writer is None
                or shared
                or not (after is None or isinstance(after, nn.ReLU))
                or (kind == "map" and not writer.maps)
            ):
                log(f"nothing is fitted in place of {name}: {gap.path} does not end in layers that can take up a fit")
                continue
            fit, size = _gather(trainer, whole, gap, kind, writer)
            change, shift = fit.solve()
            before, now = fit.error(), max(fit.error(change, shift), 0.0)
            matrix = change + torch.eye(len(change), dtype=change.dtype, device=change.device)
            if now < before and _folds(trainer, gap, writer, fit, matrix, shift):
                one = Mended(gap.removed, gap.path, math.sqrt(before / size), math.sqrt(now / size))
                found.append(one)
                log(
                    f"{gap.path} was fitted to what {name} did: the signal behind differs from the whole network's by "
                    f"{100 * one.after:.0f} % instead of {100 * one.before:.0f} %"
                )
            else:
                log(f"nothing is fitted in place of {name}: the fit cannot be folded into the last layers of {gap.path}")
    trainer.context.broadcast_weights(model)
    return found


def _gather(trainer: Trainer, whole: nn.Module, gap: Gap, kind: Mend, writer: Writer) -> tuple[LeastSquares, float]:
    """The sums of the fit, and the sum of squares of the whole network's signal."""
    device = trainer.context.device
    fit = LeastSquares(kind, writer.width, intercept=writer.shifts, device=device)
    size = torch.zeros((), dtype=torch.float64, device=device)
    target: dict[str, Tensor] = {}
    relu = gap.site is not None and gap.site.activation is not None

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        target["y"] = _rows(signal_in(out), gap)

    with ExitStack() as stack:
        seen = stack.enter_context(_watched(gap))
        stack.callback(whole.get_submodule(gap.removed[-1]).register_forward_hook(keep).remove)
        for batch in trainer.loader.some(EXAMPLES, trainer.progress.epoch):
            images = trainer.to_layout(batch.images)
            logits_of(whole, images)
            logits_of(trainer.model, images)
            y, f, u = target["y"].double(), seen["f"].double(), seen["u"].double()
            fit.add(f, torch.where((y > 0) | ~torch.tensor(relu, device=device), y, u.clamp(max=0)) - u)
            size += y.square().sum()
    for total in (*fit.sums, size):
        trainer.context.sum(total)
    return fit, max(float(size), 1e-30)


def _folds(trainer: Trainer, gap: Gap, writer: Writer, fit: LeastSquares, matrix: Tensor, shift: Tensor) -> bool:
    """Fold the fit, and take it back where the branch's output does not become what was fitted; return whether it stays."""
    batch = next(iter(trainer.loader.some(1, trainer.progress.epoch)))
    images = trainer.to_layout(batch.images)
    with _watched(gap) as seen:
        logits_of(trainer.model, images)
        wanted = seen["f"].double() @ matrix.T + shift
        undo = writer.fold(matrix, shift, fit.mean, fit.covariance)
        logits_of(trainer.model, images)
        difference = (seen["f"].double() - wanted).abs().max() if len(wanted) else wanted.sum()
    allowed = TOLERANCE * wanted.abs().max() if len(wanted) else wanted.sum()
    wrong = trainer.context.sum((~(difference <= allowed)).to(torch.float64))  # all processes decide alike
    if float(wrong):
        undo()
    return not float(wrong)


@contextmanager
def _watched(gap: Gap) -> Iterator[dict[str, Tensor]]:
    """Rows (rows, C) of the branch's output f and of the sum u of the block in front of a gap, in the last forward pass."""
    seen: dict[str, Tensor] = {}

    def see(one: Observation) -> None:
        activated = gap.site is not None and gap.site.activation is not None
        seen["f"], seen["u"] = _rows(one.branch, gap), _rows(one.shortcut + one.branch if activated else one.out, gap)

    def leave(_: nn.Module, __: Any, out: Any) -> None:
        seen["f"] = seen["u"] = _rows(signal_in(out), gap)

    if gap.site is not None:
        with gap.site.observe(see):
            yield seen
        return
    handle = gap.block.register_forward_hook(leave)
    try:
        yield seen
    finally:
        handle.remove()


def _rows(signal: Tensor, gap: Gap) -> Tensor:
    """The signal's vectors of channels, one a row."""
    last = signal if gap.channels_last else signal.movedim(1, -1)
    return last.reshape(-1, last.shape[-1]).clone()


def _is_shared(model: nn.Module, writer: Writer) -> bool:
    """Return whether a weight of the writer is used elsewhere too."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = [layer for layer in (writer.linear, writer.norm) if layer is not None]
    return any(owners[id(parameter)] > 1 for layer in layers for parameter in layer.parameters(recurse=False))
