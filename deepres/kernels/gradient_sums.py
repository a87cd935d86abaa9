"""``SumsIntoNorms``: a pass over compiled graphs, after which ``norm_act`` adds the gradients of branch and shortcut itself.

Where a block's input goes to a branch and past it, two gradients come back, and their sum is written to memory only to be read by the
backward pass of the norm in front. That pass reads the gradient anyway, so it takes both and adds them as it reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from deepres.kernels.norm_act import BACKWARD


class SumsIntoNorms(CustomGraphPass):
    """Give each ``norm_act`` backward pass the two terms of its gradient instead of their sum, which is removed."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=BACKWARD):
            gradient, other, *rest = node.args
            if other is None and _is_sum_for(gradient):
                node.args = (*gradient.args, *rest)
                graph.erase_node(gradient)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,), str(BACKWARD))


def _is_sum_for(node: fx.Node) -> bool:
    """Return whether ``node`` is the sum of two tensors of its own shape, type and layout, and one other node reads it."""
    if node.target is not torch.ops.aten.add.Tensor or len(node.users) != 1 or node.kwargs:
        return False
    whole = node.meta["val"]
    terms = [term.meta["val"] for term in node.args if isinstance(term, fx.Node)]
    return len(terms) == 2 and all(
        isinstance(term, torch.Tensor)
        and term.shape == whole.shape
        and term.dtype == whole.dtype
        and term.stride() == whole.stride()
        for term in terms
    )
