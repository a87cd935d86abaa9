"""Removal: deletes blocks that are the identity, and measures that the network's outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deepres.adapters import delete_blocks, logits_of


@torch.no_grad()
def delete_identities(model: nn.Module, paths: Sequence[str], inputs: Tensor, release: Callable[[], None]) -> float:
    """Delete the blocks at ``paths``; ``release`` removes the hooks that hold them at the identity.

    Returns the largest difference of the logits for ``inputs`` before and after, in eval mode, relative to the largest logit.
    """
    was = model.training
    model.eval()
    before = logits_of(model, inputs)
    release()
    delete_blocks(model, paths)
    after = logits_of(model, inputs)
    model.train(was)
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
