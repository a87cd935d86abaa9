"""Gates: what the blocks of a segment are worth for an input, predicted from the pooled signal in front of it."""

from __future__ import annotations

from torch import Tensor

from deepres.exits import StandardisedLinear, pooled


class Gate(StandardisedLinear):
    """Predicted log10 of how far the network's answer moves without each block of a segment, over the block's share of the time.

    Where the pooled signal is out of distribution every block is kept.
    """

    def forward(self, signal: Tensor) -> Tensor:
        """(N, C, ...) -> (N, blocks); infinite where the signal is out of distribution."""
        worth, outside = self.linear(pooled(signal))
        return worth.masked_fill(outside, float("inf"))
