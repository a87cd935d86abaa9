"""Early exits: exit heads with their readers, averages of their answers, fitting on a frozen network, and deep supervision.

Read: readout -> heads -> average -> fitting (on a frozen network), supervision (while the network trains).
"""

from deepres.exits.average import Average, SingleAverage
from deepres.exits.heads import ExitHead, StandardisedLinear, without_norms
from deepres.exits.readout import Coarser, coarse, exit_targets, pooled, pooled_by_quarter, readers

__all__ = [
    "Average",
    "Coarser",
    "ExitHead",
    "SingleAverage",
    "StandardisedLinear",
    "coarse",
    "exit_targets",
    "pooled",
    "pooled_by_quarter",
    "readers",
    "without_norms",
]
