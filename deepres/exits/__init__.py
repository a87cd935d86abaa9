"""Early exits: what they read of a signal, and their training beside the network."""

from deepres.exits.readout import Coarser, coarse, learnt, pooled, pooled_by_quarter, readers

__all__ = ["Coarser", "coarse", "learnt", "pooled", "pooled_by_quarter", "readers"]
