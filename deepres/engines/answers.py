"""Close calls: inputs whose two best logits are closer than low precision can tell, and what computing them again costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from deepres.evaluation.timing import call_times

Answers = Literal["exact", "close"]  # close calls are computed again in float32, or are left as low precision has them

# The error that low precision adds to the difference of two logits is taken for normal; a difference below this many of its
# standard deviations is a close call, whose order may be wrong.
DEVIATIONS = 4.0
LOW = ("bf16", "fp16")  # precisions with close calls
_TIE = 1e-4  # relative to the largest logit: float32 engines that sum in another order differ by as much


def has_close_calls(logits: Tensor) -> bool:
    """Return whether an answer is the best of two or more logits, (N, K). Those of a language model are too many to compute again."""
    return logits.ndim == 2 and logits.shape[1] > 1


def margin_of(low: Tensor, exact: Tensor) -> float:
    """The difference of two logits below which low precision may have them in the wrong order; NaN where it has none that is finite.

    ``low``, ``exact``: logits (N, K) of the same inputs in low precision and in float32. A constant that low precision adds to all logits
    of an input changes no order and does not count. Nor do infinite logits, as those of classes that a network masks out.
    """
    noise = low - exact
    noise = noise.masked_fill(~noise.isfinite(), math.nan)
    return DEVIATIONS * math.sqrt(2) * float((noise - noise.nanmean(1, keepdim=True)).square().nanmean().sqrt())


def close_calls(logits: Tensor, margin: float) -> list[int]:
    """Rows of (N, K) whose two best logits are closer than ``margin``, or are not finite: in fp16 large values overflow.

    Compared as numbers of Python: five small tensor operations take a third of a millisecond where a network has filled the caches.
    """
    pairs = enumerate(logits.topk(2).values.tolist())
    return [row for row, (best, second) in pairs if not margin <= best - second < math.inf]


def replace_rows(logits: Tensor, rows: Sequence[int], exact: Tensor) -> Tensor:
    """``logits`` (N, K) with ``exact`` (M, K) in place of the M ``rows``."""
    return logits.index_copy(0, torch.tensor(rows, dtype=torch.int64, device=logits.device), exact)


def changed_answers(original: Tensor, logits: Tensor) -> int:
    """Count the predicted classes that differ from those of ``original``, without ties within float32's rounding."""
    original, logits = (each.reshape(-1, each.shape[-1]) for each in (original.float(), logits))
    gap = original.amax(1) - original.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    largest = original.abs().masked_fill(original.isinf(), 0.0).amax(1)
    lost = logits.isnan().any(1) & ~original.isnan().any(1)
    return int(((gap > _TIE * largest) | lost).sum())


@dataclass(frozen=True)
class Recomputed:
    """Effect of recomputing close calls of a network in low precision, measured on images."""

    margin: float
    share: float  # of the images that are close calls
    seconds: float  # that a batch takes longer for it, on average
    logits: Tensor  # (N, K) with the close calls' from the exact network


@torch.no_grad()
def measure_close_calls(low: Tensor, exact: nn.Module, images: Tensor, batch: int) -> Recomputed:
    """Measure margin, share and cost of close calls on ``images``, whose logits in low precision are ``low``.

    The cost is that of the calls with as many rows as the batches have close calls, so it holds for these images: photographs have
    fewer close calls than noise.
    """
    full = torch.cat([exact(part) for part in images.split(max(batch, 32))]).float()
    margin = margin_of(low, full)
    close = close_calls(low, margin)
    logits = replace_rows(low, close, full[close])
    counts = [len(close_calls(part, margin)) for part in low.split(batch)]
    times = _times(exact, images, counts)
    return Recomputed(margin, len(close) / len(images), statistics.fmean(times[count] for count in counts), logits)


def _times(exact: nn.Module, images: Tensor, counts: Sequence[int]) -> dict[int, float]:
    """Seconds of a call of ``exact`` by number of rows; of many numbers some are measured and the others interpolated."""
    wanted = sorted(set(counts) - {0})
    measured = wanted if len(wanted) <= 4 else [wanted[0], wanted[len(wanted) // 3], wanted[2 * len(wanted) // 3], wanted[-1]]
    known = {0: 0.0}
    for count in measured:
        known[count] = statistics.median(call_times(partial(exact, images[:count]), images.device, repeats=3))
    points = sorted(known)
    for count in wanted:
        if count not in known:
            below, above = max(p for p in points if p < count), min(p for p in points if p > count)
            share = (count - below) / (above - below)
            known[count] = known[below] + share * (known[above] - known[below])
    return known
