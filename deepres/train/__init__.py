"""Training. Read: recipe -> run -> trainer -> loop; optimizer, speed, memory, exits, checkpoint, guard, distribute, progress serve it."""

from deepres._room import callable_room
from deepres.train.guard import NonFinite
from deepres.train.loop import Result, resume, train
from deepres.train.progress import Record, read_log
from deepres.train.recipe import RECIPES, Recipe, recipe
from deepres.train.run import Run
from deepres.train.trainer import Interrupted, Trainer

__all__ = [
    "RECIPES",
    "Interrupted",
    "NonFinite",
    "Recipe",
    "Record",
    "Result",
    "Run",
    "Trainer",
    "read_log",
    "recipe",
    "resume",
    "train",
]

callable_room(__name__)
