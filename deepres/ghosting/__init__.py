"""Ghost Inference: a trained network computes for each input only the blocks that it needs.

Read: settings, gates -> context -> route -> model -> recording -> fit -> points -> recorded -> candidates -> selection -> confirm ->
make -> page.
"""

from deepres.ghosting.confirm import Verified
from deepres.ghosting.context import Trace
from deepres.ghosting.gates import Gate
from deepres.ghosting.make import GhostResult, ghost, load_ghost, save_ghost
from deepres.ghosting.model import Ghost
from deepres.ghosting.points import Point
from deepres.ghosting.settings import Settings

__all__ = [
    "Gate",
    "Ghost",
    "GhostResult",
    "Point",
    "Settings",
    "Trace",
    "Verified",
    "ghost",
    "load_ghost",
    "save_ghost",
]
