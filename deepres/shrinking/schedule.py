"""The schedule of a run of Inverse Curriculum Training, and the records of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.errors import DeepresError
from deepres.shrinking.target import Target


@dataclass(frozen=True)
class Schedule:
    """The phases of a run and the strength of the pressing. Shares are of the run's steps."""

    target: Target
    learn: float  # share before the first unit is pressed on
    press: float  # share by which all are closed
    distil: float = 0.0  # weight of the whole network's answers against the labels, while it is ahead
    penalty: float = 1.0  # scales the weights of the penalties; 0: residuals are only scaled away
    rise: float = 0.3  # nats that the training loss may rise above its best before the lines wait

    @classmethod
    def usual(cls, target: Target, trained: bool) -> Schedule:
        """The schedule for a trained network, or for one that is trained from scratch."""
        return cls(target, 0.02, 0.2, distil=0.5) if trained else cls(target, 0.1, 0.3)

    def __post_init__(self) -> None:
        if not 0 <= self.learn < self.press < 1:
            raise DeepresError(f"learn {self.learn:g} and press {self.press:g} are shares of the run, 0 <= learn < press < 1")
        if not 0 <= self.distil < 1:
            raise DeepresError(f"distil is a weight from 0 to below 1, not {self.distil:g}")


@dataclass
class Closing:
    """A block whose residual is being pressed to zero."""

    began: float  # on the clock
    size: float  # of its residual then, against its shortcut
    weight: float = 0.0  # of its penalty


@dataclass
class EpochSizes:
    """The residuals of all blocks after an epoch."""

    epoch: int
    sizes: list[float]  # of each block's residual relative to its shortcut; 0 for one that is removed
    gone: int  # blocks that are the identity, or removed
