"""All experiments: importing this puts them on the list."""

from deepres.paper import cifar, imagenet  # noqa: F401
from deepres.paper.experiment import EXPERIMENTS, Experiment, experiment, served

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "served"]
