"""All experiments. Importing this module adds them to the list."""

from deepres.paper import (  # noqa: F401
    block_claims,
    degradation_claims,
    depth_claims,
    imagenet,
    signal_claims,
    transformer_claims,
)
from deepres.paper.experiment import EXPERIMENTS, Experiment, experiment, served

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "served"]
