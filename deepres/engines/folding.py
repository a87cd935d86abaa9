"""Fold batch norms into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution or linear layer before it, in a copy of ``model`` in eval mode.

    Pairs are found in the graph that ``torch.fx`` traces. A model that it cannot trace comes back unfolded; so does one that calls one
    of its layers more than once, as a norm behind one call would change the others, and one with hooks at such a pair, as spectral
    norm has, which sets the weight before each call.
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
    norms = [node for node in traced.graph.nodes if isinstance(modules.get(str(node.target)), _BatchNorm)]
    pairs = [modules.get(str(getattr(one, "target", None))) for norm in norms for one in (norm, *norm.args[:1])]
    if any(layer is not None and (layer._forward_hooks or layer._forward_pre_hooks) for layer in pairs):
        return model
    return fuse(traced, inplace=True, no_trace=True).eval()
