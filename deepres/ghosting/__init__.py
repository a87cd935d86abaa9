"""Ghost Inference: depth by input.

Read: settings, heads -> route -> recording -> exits -> fit -> choose -> confirm -> make -> page.
"""

from deepres.ghosting.choose import Point
from deepres.ghosting.confirm import Verified
from deepres.ghosting.heads import Exit, Gate
from deepres.ghosting.make import GhostResult, ghost, load_ghost, save_ghost
from deepres.ghosting.route import Ghost, Trace
from deepres.ghosting.settings import Settings

__all__ = [
    "Exit",
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
