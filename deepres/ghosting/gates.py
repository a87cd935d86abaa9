"""Gates predict how important each block of a segment is for an input, from the pooled signal in front of the segment."""

from __future__ import annotations

from torch import Tensor

from deepres.exits import StandardisedLinear, pooled


class Gate(StandardisedLinear):
    """Linear prediction of the importance of each block of a segment.

    Importance is the log10 of the divergence of the network's answer without the block, divided by the block's share of the time.
    For a pooled signal that is out of distribution the prediction is infinite, so that every block is kept.
    """

    def forward(self, signal: Tensor) -> Tensor:
        """Predict importance: (N, C, ...) -> (N, blocks)."""
        importance, outside = self.linear(pooled(signal))
        return importance.masked_fill(outside, float("inf"))
