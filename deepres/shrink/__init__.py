"""Inverse Curriculum Training. Read: cost -> target -> press -> teacher -> norms -> curriculum -> shrink -> page."""

from deepres._room import callable_room
from deepres.shrink.curriculum import Inverse, Plan
from deepres.shrink.press import Press
from deepres.shrink.shrink import Shrunk, shrink, time_ratio
from deepres.shrink.target import Target

__all__ = ["Inverse", "Plan", "Press", "Shrunk", "Target", "shrink", "time_ratio"]

callable_room(__name__)
