"""``compiled_for_training``: ``torch.compile`` with what it cannot know of ``norm_act``."""

from __future__ import annotations

import torch
from torch import nn


def compiled_for_training(model: nn.Module) -> nn.Module:
    """Compile ``model`` by ``torch.compile`` with ``SumsIntoNorms``."""
    from deepres.kernels.gradient_sums import SumsIntoNorms  # imports PyTorch's compiler, which takes seconds

    return torch.compile(model, options={"post_grad_custom_post_pass": SumsIntoNorms()})  # type: ignore[return-value]
