"""Fold batch norms into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution or linear layer before it, in a copy of ``model`` in eval mode.

    Pairs are found in the graph that ``torch.fx`` traces. A model that it cannot trace, or that calls one of its layers more than
    once, so that a norm behind one call would change the others, comes back unfolded.
    """
    model = copy.deepcopy(model).eval()
    try:
        traced = torch.fx.symbolic_trace(model)
    except Exception:  # control flow that depends on data
        return model
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    modules = dict(traced.named_modules())
    if any(times > 1 and any(True for _ in modules[str(name)].parameters()) for name, times in calls.items()):
        return model
    return fuse(traced, inplace=True, no_trace=True).eval()
