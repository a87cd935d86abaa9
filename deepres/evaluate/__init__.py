"""Testing protocols, and using a trained network."""

from deepres._room import callable_room
from deepres.evaluate.clock import time_against
from deepres.evaluate.measure import Evaluation, measure
from deepres.evaluate.use import Prediction, evaluate, predict

__all__ = ["Evaluation", "Prediction", "evaluate", "measure", "predict", "time_against"]

callable_room(__name__)
