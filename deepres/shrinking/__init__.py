"""Inverse Curriculum Training.

Read: cost -> target -> schedule -> press -> teacher -> importance -> removal -> curriculum -> api -> page.
"""

from deepres.shrinking.api import ShrinkResult, shrink, time_ratio
from deepres.shrinking.curriculum import InverseCurriculum
from deepres.shrinking.press import Press
from deepres.shrinking.schedule import Schedule
from deepres.shrinking.target import Target

__all__ = ["InverseCurriculum", "Press", "Schedule", "ShrinkResult", "Target", "shrink", "time_ratio"]
