"""Options of ``shrink``, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Removal = Literal["gradual", "at-once"]
Selection = Literal["ablation", "greedy"]
Mend = Literal["none", "scale", "map"]


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions:
    """Options of ``shrink``. Shares are of the run's steps."""

    epochs: float | None = None  # passes over the training set, in the whole run [10 for a trained network, else the recipe's]
    # recipe to train with [for a trained network a cosine from half of its own learning rate, at least 0.05; else fast-cifar]
    recipe: str | None = None
    learn: float | None = None  # share of the run before the first block is constrained [0.02 for a trained network, else 0.1]
    # share of the run by which all selected blocks are the identity [0.2 for a trained network, else 0.3]
    constrain: float | None = None
    distil: float | None = None  # weight of the given network's own answers in the loss [0.5 for a trained network, else 0]
    # gradual: blocks are constrained until they are identities; at-once: deleted before the first step (for a trained network). With a
    # target of error= or loss=, at-once trains several sizes, each for --epochs, and takes the smallest that is within the target
    removal: Removal = "gradual"
    # ablation: blocks are ranked once, each by the rise of the loss without it alone; greedy: again after each choice, without those
    # chosen before (SLEB)
    select: Selection = "ablation"
    # with at-once: what the deleted blocks did is fitted to the layers in front of them, by least squares: a scale and a shift of each
    # channel, or a linear map (ReplaceMe)
    mend: Mend = "none"
    # weight in the loss of the difference between the signals behind the remaining blocks and the given network's, until a tenth of the
    # recovery is over; 1 is usual
    features: float = 0.0
    seed: int = 0  # seed of the order of the examples and all random draws, and of the weights if the network is not trained
