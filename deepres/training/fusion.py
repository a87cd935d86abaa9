"""``accelerate``: a network whose norms, residual sums and ReLUs run as one operation each while it trains.

``torch.fx`` traces each residual block and finds in its graph where a batch norm is followed by a sum, a ReLU or both. The block
gets a subclass of its own class, of which ``forward`` runs the graph with these fused; modules, weights and ``state_dict`` keys
stay. Around the blocks, in the stem and in plain networks, a norm and the ReLU behind it become ``FusedNorm`` and ``FusedReLU``.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deepres.adapters import kept_modes, sites
from deepres.nn.branch import Branch
from deepres.nn.fused import FusedNorm, FusedReLU
from deepres.training.sync_norm import SyncBatchNorm2d

_NORMS = (nn.BatchNorm2d, SyncBatchNorm2d)
_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, "relu", "relu_")


def accelerate(model: nn.Module) -> nn.Module:
    """Fuse batch norms, residual sums and ReLUs of ``model`` for training, in place, and return it. ``undo_acceleration`` undoes it.

    Takes the blocks of every family that has an adapter, and leaves alone what has no ``nn.BatchNorm2d`` or cannot be traced. Weights,
    running statistics, ``state_dict`` keys and, up to rounding, results stay; in eval mode, results stay to the bit. One pass
    over an activation takes the place of three or four: it pays in channels-last memory, where ``kernels.status()`` names kernels.
    """
    with kept_modes(model):
        model.train()  # layers such as dropout are traced as they train
        blocks = dict.fromkeys(site.block for site in sites(model))
        for block in blocks:
            if not isinstance(block, _Fused):
                _fuse_block(block)
        _fuse_pairs(model, set(blocks))
    return model


def undo_acceleration(model: nn.Module) -> nn.Module:
    """Undo ``accelerate``, in place."""
    for module in model.modules():
        if isinstance(module, _Fused):
            module.__class__ = module._ordinary  # type: ignore[assignment]
        elif isinstance(module, FusedNorm):
            module.__class__ = SyncBatchNorm2d if module.synchronised else nn.BatchNorm2d  # type: ignore[assignment]
            for name in ("relu", "synchronised"):
                module.__dict__.pop(name, None)
        elif isinstance(module, FusedReLU):
            module.__class__ = nn.ReLU  # type: ignore[assignment]
    return model


class _Fused(nn.Module):
    """A block with a fused ``forward``, which gives way to the ordinary one where calls of a part are observed or replaced."""

    _ordinary: type[nn.Module]
    _fused: ClassVar[Callable[[nn.Module, Tensor], Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        ordinarily = not self.training or any(map(_is_watched, self.modules()))
        return super().forward(x) if ordinarily else type(self)._fused(self, x)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return _unpickled, (self._ordinary,), self.__dict__.copy()  # copies and pickles are ordinary blocks


def _unpickled(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


class _Tracer(fx.Tracer):
    """Goes into modules that run the same layers in every call, up to ``leaves``."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.leaves:
            return True
        if isinstance(m, Branch):
            return m.survival < 1  # drawn anew in every step
        return super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module, leaves: set[nn.Module]) -> fx.Graph | None:
    """The graph of ``module``; None where its ``forward`` depends on more than one tensor or on what the tensor holds."""
    try:
        graph = _Tracer(leaves).trace(module)
    except Exception:  # whatever a foreign forward raises when it meets a proxy instead of a tensor
        return None
    parts = dict(module.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(parts[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph if sum(node.op == "placeholder" for node in graph.nodes) == 1 else None


def _fuse_block(block: nn.Module) -> None:
    graph = _trace(block, set())
    if graph is None:
        return
    parts = dict(block.named_modules())

    def is_norm(node: Any) -> bool:
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return called and type(parts[node.target]) in _NORMS and len(node.users) == 1

    norms = []
    for node in list(graph.nodes):
        if not _is_relu(node, parts):
            continue
        before, shortcut = node.args[0], None
        if _is_sum(before) and len(before.users) == 1:
            operands = list(before.args[:2])
            norm = next(filter(is_norm, operands), None)
            shortcut = None if norm is None else operands[1 - operands.index(norm)]
        else:
            norm = before if is_norm(before) else None
        if norm is None:
            continue
        with graph.inserting_before(node):
            fused = graph.call_module(norm.target, (norm.args[0], shortcut, True))
        node.replace_all_uses_with(fused)
        for old in dict.fromkeys((node, before, norm)):
            graph.erase_node(old)
        norms.append(parts[norm.target])
    if not norms:
        return
    graph.lint()
    for module in block.modules():
        _fuse_norm(module)
    kind = type(block)
    run = type(fx.GraphModule(block, graph)).forward
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "_ordinary": kind, "_fused": run}
    block.__class__ = type(kind.__name__, (_Fused, kind), names)


def _fuse_pairs(model: nn.Module, blocks: set[nn.Module]) -> None:
    """Fuse each norm and the ReLU module that always follows it, outside of fused blocks."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    places = Counter(part for module in model.modules() for part in module._modules.values())
    for module in model.modules():
        if type(module).forward is nn.Sequential.forward or isinstance(module, Branch):
            layers = [
                layer for layer in module._modules.values() if layer is not None
            ]  # ``children()`` leaves out repeated ones
            pairs += pairwise(layers)
    graph = _trace(model, blocks)
    if graph is not None:
        parts = dict(model.named_modules(remove_duplicate=False))
        calls = [node for node in graph.nodes if node.op == "call_module"]
        times = Counter(parts[node.target] for node in calls)
        for node in calls:
            norm = node.args[0] if node.args else None
            if isinstance(norm, fx.Node) and norm in calls and len(norm.users) == 1:
                pair = parts[norm.target], parts[node.target]
                pairs += [pair] if times[pair[0]] == times[pair[1]] == 1 else []
    for first, second in pairs:
        alone = places[first] == places[second] == 1  # a layer that stands in two places may be called without the other
        if alone and type(second) is nn.ReLU and _fuse_norm(first):
            second.__class__, first.relu = FusedReLU, True  # type: ignore[assignment]


def _fuse_norm(module: nn.Module) -> bool:
    """Make ``module`` a ``FusedNorm`` and return true, if it is a batch norm that can be one."""
    if type(module) not in _NORMS:
        return False
    synchronised = isinstance(module, SyncBatchNorm2d)
    module.__class__, module.synchronised = FusedNorm, synchronised  # type: ignore[assignment]
    return True


def _is_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(parts[node.target]) is nn.ReLU  # type: ignore[index]
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _is_sum(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in _SUMS and not node.kwargs
