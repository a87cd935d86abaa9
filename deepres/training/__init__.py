"""Training. Read: recipe -> run -> trainer -> step -> epoch -> checkpoint -> loop; the other modules serve these."""

from deepres.training.distribute import local_norms
from deepres.training.epoch import Interrupted
from deepres.training.fusion import accelerate, undo_acceleration
from deepres.training.guard import NonFinite
from deepres.training.loop import Result, resume, train
from deepres.training.progress import Record, read_log
from deepres.training.recipe import RECIPES, Recipe, recipe
from deepres.training.run import Run
from deepres.training.trainer import Trainer

__all__ = [
    "RECIPES",
    "Interrupted",
    "NonFinite",
    "Recipe",
    "Record",
    "Result",
    "Run",
    "Trainer",
    "accelerate",
    "local_norms",
    "read_log",
    "recipe",
    "resume",
    "train",
    "undo_acceleration",
]
