"""Removal of blocks that are the identity, with a check that the network's outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deepres.adapters import delete_blocks, kept_modes, logits_of


@torch.no_grad()
def delete_identities(model: nn.Module, paths: Sequence[str], inputs: Tensor, detach: Callable[[], None]) -> float:
    """Delete the blocks at ``paths``. ``detach`` removes the hooks that make them the identity.

    Returns the largest difference of the logits for ``inputs`` before and after, in eval mode, relative to the largest logit.
    """
    with kept_modes(model):
        model.eval()
        before = logits_of(model, inputs)
        detach()
        delete_blocks(model, paths)
        after = logits_of(model, inputs)
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
