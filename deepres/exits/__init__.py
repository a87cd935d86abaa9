"""Early exits: readers of a signal, exit heads, averages of their answers, and their fitting and training.

Read: readout -> heads -> average -> fitting (on a frozen network), supervision (while the network trains).
"""

from deepres.exits.average import Average, SingleAverage
from deepres.exits.heads import ExitHead, StandardisedLinear, without_norms
from deepres.exits.readout import Coarser, coarse, learnt, pooled, pooled_by_quarter, readers

__all__ = [
    "Average",
    "Coarser",
    "ExitHead",
    "SingleAverage",
    "StandardisedLinear",
    "coarse",
    "learnt",
    "pooled",
    "pooled_by_quarter",
    "readers",
    "without_norms",
]
