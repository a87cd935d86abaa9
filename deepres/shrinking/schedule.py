"""The schedule of a run of Inverse Curriculum Training, and the records of its blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from deepres.deprecation import renamed_fields
from deepres.errors import DeepresError
from deepres.shrinking.options import Mend, Removal, Selection
from deepres.shrinking.target import HELD, Target

FEATURE_SHARE = 0.1  # share of the recovery in which signals inside the network follow the teacher's


@renamed_fields(press="constrain")
@dataclass(frozen=True)
class ShrinkSchedule:
    """The phases of a run and the strength of the penalty. Shares are of the run's steps."""

    target: Target
    learn: float  # share of the run before the first block is constrained
    constrain: float  # share of the run by which all selected blocks are the identity
    distil: float = 0.0  # weight of the teacher's answers in the loss, while the teacher's own loss is lower
    penalty: float = 1.0  # factor of the rate at which penalties grow; 0: residuals are scaled down without a penalty
    removal: Removal = (
        "gradual"  # "at-once" deletes before the first step; learn, constrain, penalty and rise then have no effect
    )
    select: Selection = "ablation"  # "greedy" measures again after each choice
    mend: Mend = "none"  # what is fitted in front of deleted blocks
    features: float = 0.0  # weight of the signals inside the teacher, until FEATURE_SHARE of the recovery are over
    rise: float = 0.3  # rise of the training loss above its minimum, in nats, beyond which the bounds stay where they are

    @classmethod
    def usual(cls, target: Target, trained: bool) -> ShrinkSchedule:
        """Default schedule for a trained network, or for one that is trained from scratch."""
        return cls(target, 0.02, 0.2, distil=0.5) if trained else cls(target, 0.1, 0.3)

    @classmethod
    def from_options(cls, target: Target, trained: bool, **options: Any) -> ShrinkSchedule:
        """The usual schedule with ``options`` of it changed, where they are not None.

        Raises ``DeepresError`` for options that have no effect together, and for those that need a ``trained`` network.
        """
        given = {key: value for key, value in options.items() if value is not None}
        made = dataclasses.replace(cls.usual(target, trained), **given)
        idle = [f"--{key}" for key in ("learn", "constrain") if key in given]
        if made.removal == "at-once" and idle:
            raise DeepresError(
                f"{' and '.join(idle)} set the phases of --removal gradual; leave out what does not apply to at-once"
            )
        for asked, option in ((made.removal == "at-once", "--removal at-once"), (made.features > 0, "--features")):
            if asked and not trained:
                raise DeepresError(
                    f"{option} needs a trained network, and this one is to be trained from scratch; train it first"
                )
        return made

    def __post_init__(self) -> None:
        if not 0 <= self.learn < self.constrain < 1:
            raise DeepresError(
                f"learn {self.learn:g} and constrain {self.constrain:g} are shares of the run; they must satisfy "
                "0 <= learn < constrain < 1"
            )
        if not 0 <= self.distil < 1:
            raise DeepresError(f"distil is a weight from 0 to below 1, not {self.distil:g}")
        if self.features < 0:
            raise DeepresError(f"features is a weight of 0 or more, not {self.features:g}")
        if self.mend != "none" and self.removal == "gradual":
            raise DeepresError(
                f"mend={self.mend} needs removal=at-once: a block that has become the identity leaves nothing to mend"
            )
        if self.target.quantity in HELD and self.removal == "at-once":
            raise DeepresError(
                f"the target {self.target} needs removal=gradual, or `deepres.shrink` of a trained network, which tries several sizes: "
                "how far the error rises is known only after training"
            )

    @property
    def features_until(self) -> float:
        """Share of the run after which signals inside the network follow the teacher's no more."""
        recovery = 1.0 if self.removal == "at-once" else 1 - self.constrain
        return 1 - recovery * (1 - FEATURE_SHARE)


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
