"""All experiments. Importing this module adds them to the list."""

from deepres.paper import block_claims, degradation_claims, depth_claims, imagenet, signal_claims  # noqa: F401
from deepres.paper.experiment import EXPERIMENTS, Experiment, experiment, served

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "served"]
