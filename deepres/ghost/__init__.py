"""Ghost Inference: depth by input. Read: settings, heads -> route -> look -> exits -> fit -> choose -> confirm -> ghost -> page."""

from deepres._room import callable_room
from deepres.ghost.choose import Point
from deepres.ghost.confirm import Verified
from deepres.ghost.ghost import Made, ghost, load_ghost, save_ghost
from deepres.ghost.heads import Exit, Gate
from deepres.ghost.route import Ghost, Trace
from deepres.ghost.settings import Settings

__all__ = ["Exit", "Gate", "Ghost", "Made", "Point", "Settings", "Trace", "Verified", "ghost", "load_ghost", "save_ghost"]

callable_room(__name__)
