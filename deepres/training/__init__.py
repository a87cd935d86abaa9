"""Training. Read: recipe -> run -> trainer -> loop; optimizer, speed, memory, exits, checkpoint, guard, distribute, progress serve it."""

from deepres.training.guard import NonFinite
from deepres.training.loop import Result, resume, train
from deepres.training.progress import Record, read_log
from deepres.training.recipe import RECIPES, Recipe, recipe
from deepres.training.run import Run
from deepres.training.trainer import Interrupted, Trainer

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
