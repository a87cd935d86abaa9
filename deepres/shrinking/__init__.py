"""Inverse Curriculum Training. Read: cost -> target -> press -> teacher -> norms -> curriculum -> shrink -> page."""

from deepres.shrinking.api import ShrinkResult, shrink, time_ratio
from deepres.shrinking.curriculum import Inverse, Plan
from deepres.shrinking.press import Press
from deepres.shrinking.target import Target

__all__ = ["Inverse", "Plan", "Press", "ShrinkResult", "Target", "shrink", "time_ratio"]
