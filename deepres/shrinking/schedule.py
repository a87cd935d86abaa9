"""The schedule of a run of Inverse Curriculum Training, and the records of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError
from deepres.shrinking.target import Target


@renamed_fields(press="constrain")
@dataclass(frozen=True)
class ShrinkSchedule:
    """The phases of a run and the strength of the penalty. Shares are of the run's steps."""

    target: Target
    learn: float  # share of the run before the first block is constrained
    constrain: float  # share of the run by which all selected blocks are the identity
    distil: float = 0.0  # weight of the teacher's answers in the loss, while the teacher's own loss is lower
    penalty: float = 1.0  # factor of the rate at which penalties grow; 0: residuals are scaled down without a penalty
    rise: float = 0.3  # rise of the training loss above its minimum, in nats, beyond which the bounds stay where they are

    @classmethod
    def usual(cls, target: Target, trained: bool) -> ShrinkSchedule:
        """Default schedule for a trained network, or for one that is trained from scratch."""
        return cls(target, 0.02, 0.2, distil=0.5) if trained else cls(target, 0.1, 0.3)

    def __post_init__(self) -> None:
        if not 0 <= self.learn < self.constrain < 1:
            raise DeepresError(
                f"learn {self.learn:g} and constrain {self.constrain:g} are shares of the run; they must satisfy "
                "0 <= learn < constrain < 1"
            )
        if not 0 <= self.distil < 1:
            raise DeepresError(f"distil is a weight from 0 to below 1, not {self.distil:g}")


@dataclass
class Bound:
    """The falling bound on the residual ratio of one block."""

    started: float  # progress of the phase at which the bound was set
    ratio: float  # residual ratio at that moment, from which the bound falls
    weight: float = 0.0  # current weight of the block's penalty


@renamed_fields(sizes="ratios", gone="identities")
@dataclass
class EpochRatios:
    """The residual ratios of all blocks after an epoch."""

    epoch: int
    ratios: list[float]  # norm of each block's residual relative to its shortcut; 0 for a block that was removed
    identities: int  # number of blocks that are the identity or were removed
