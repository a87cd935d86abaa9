"""Ghost Inference: depth by input. Read: route -> fit -> choose -> ghost -> page."""

from deepres._room import callable_room
from deepres.ghost.choose import Point, Verified
from deepres.ghost.ghost import Made, ghost, load_ghost, save_ghost
from deepres.ghost.route import Exit, Gate, Ghost, Settings, Trace

__all__ = ["Exit", "Gate", "Ghost", "Made", "Point", "Settings", "Trace", "Verified", "ghost", "load_ghost", "save_ghost"]

callable_room(__name__)
