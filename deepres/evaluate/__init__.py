"""Testing protocols, and using a trained network."""

from deepres._room import callable_room
from deepres.evaluate.measure import Evaluation, measure
from deepres.evaluate.use import Prediction, evaluate, predict

__all__ = ["Evaluation", "Prediction", "evaluate", "measure", "predict"]

callable_room(__name__)
