"""Testing protocols, timing, and using a trained network."""

from deepres.evaluation.measure import Evaluation, measure
from deepres.evaluation.profile import block_times, branch_times
from deepres.evaluation.timing import time_against
from deepres.evaluation.use import Prediction, evaluate, predict

__all__ = ["Evaluation", "Prediction", "block_times", "branch_times", "evaluate", "measure", "predict", "time_against"]
