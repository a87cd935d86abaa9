"""Options of all that open a network from a reference, for Python and the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepres.options import SizeOption

BUILDERS = "DEEPRES_BUILDERS"  # the environment variable: references of builders of the user's own, with commas between


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Source of a network's weights."""

    # weights for a network that is given by name: a file, a run's folder, or a name of weights, such as pretrained
    # [those in the run or file that is given as the network]
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PushOptions(WeightsOptions):
    """Options of ``push``."""

    license: str | None = None  # licence of the weights, by its name on the Hub, such as apache-2.0 [none is stated]
    private: bool = False  # keep a repository that is made here private
    message: str = "Add a network of deepres"  # message of the commit


@dataclass(frozen=True, kw_only=True)
class OpenOptions(WeightsOptions, SizeOption):
    """Options of ``open_with_data``."""


@dataclass(frozen=True, kw_only=True)
class NetOptions:
    """Fields of ``ResNetConfig`` that ``create`` takes for a network of ours, where they differ from the network's usual ones."""

    shortcut: Literal["A", "B", "C", "none"] | None = None  # kind of shortcuts, none for a plain network [the network's own]
    stride_in: Literal["1x1", "3x3"] | None = None  # convolution of a bottleneck that strides; 1x1 is the paper's [3x3]
    zero_init: bool = False  # start each block as the identity
    dropout: float = 0.0  # share of features that a training step leaves out in front of the classifier
    survival: float = 1.0  # stochastic depth: probability that a training step computes the last branch; 0.5 is usual

    def changes(self) -> dict[str, Any]:
        """The fields that were set, as keywords of ``create``."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(NetOptions)}
        return {name: value for name, (value, default) in values.items() if value != default}
