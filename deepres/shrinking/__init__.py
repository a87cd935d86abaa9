"""Inverse Curriculum Training: removes blocks from a network while it trains.

Read: cost -> target -> schedule -> constraint -> teacher -> importance -> removal -> curriculum -> api -> page.
"""

from deepres.shrinking.api import ShrinkResult, shrink, time_ratio
from deepres.shrinking.constraint import ResidualConstraint
from deepres.shrinking.curriculum import InverseCurriculum
from deepres.shrinking.schedule import ShrinkSchedule
from deepres.shrinking.target import Target

__all__ = ["InverseCurriculum", "ResidualConstraint", "ShrinkResult", "ShrinkSchedule", "Target", "shrink", "time_ratio"]
