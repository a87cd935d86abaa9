"""Options of the papers' experiments, for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass

SPEED = "float32-channels-last"  # the same on every machine, so that seeds can be compared


@dataclass(frozen=True, kw_only=True)
class DegradeOptions:
    """Options of ``degrade``."""

    depths: tuple[int, ...] = (20, 56)  # two or more depths in layers, each 6n+2
    epochs: float = 10  # passes over the training set for each network
    seeds: int = 1  # number of times that each network is trained
    speed: str = SPEED  # precision and memory layout, by the names that `train` has
    size: int | None = None  # side of the images in pixels [their own, or 32]


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Options of ``ExperimentScale.changed``, which replace those of a scale."""

    data: str | None = None  # digits, cifar10, or a folder of images or tar shards [the scale's]
    epochs: float | None = None  # passes over the training set for each network [the scale's]
    seeds: int | None = None  # number of times that each network is trained [the scale's]
