"""Optimizers: SGD with momentum, as the papers train; AdamW, as Transformers do; Muon for the weights of residual branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.adapters import sites, spec_of
from deepres.errors import DeepresError
from deepres.training.muon import MuonAndSGD
from deepres.training.recipes import Optimizer, Recipe

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer

KEPT: dict[Optimizer, int] = {"sgd": 1, "adamw": 2, "muon": 2, "muon-sgd": 1}  # values of each weight, from step to step
DEPTH_PARTS = 4  # of a network whose learning rate depends on the depth
MUON_MOMENTUM = 0.95  # Jordan et al. 2024


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """``"sgd"``: v = mu v + g; w -= lr v, as PyTorch writes it. ``"adamw"``: Loshchilov & Hutter 2019. ``"muon"``: see ``MuonAndAdamW``;
    ``"muon-sgd"``: ``MuonAndSGD``.

    Weight decay acts on norms and biases only where the recipe says so.

    Raises ``DeepresError`` for Muon and a network whose residual branches hold no matrices, or no convolutions.
    """
    matrices = _weights_in_branches(model, recipe.optimizer) if recipe.optimizer.startswith("muon") else []
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    if recipe.depth_rate < 1 or recipe.head_first:
        return _sgd_or_adamw(_groups_by_depth(model, recipe), recipe)
    norms = [p for p in rest if p.ndim < 2 and not recipe.decay_norms]
    others = [p for p in rest if p.ndim >= 2 or recipe.decay_norms]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": recipe.weight_decay}]
    if norms:
        groups.append({"params": norms, "weight_decay": 0.0})
    if recipe.optimizer == "muon":
        return MuonAndAdamW(matrices, groups, recipe)
    if recipe.optimizer == "muon-sgd":
        return MuonAndSGD(matrices, groups, recipe.lr, recipe.momentum)
    return _sgd_or_adamw(groups, recipe)


def _sgd_or_adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, (recipe.momentum, recipe.beta2), fused=True)
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov, fused=True)


def _groups_by_depth(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The last layer, then the others in four parts by the order in which the network defines them; each with a ``scale`` of the rate."""
    if recipe.optimizer.startswith("muon"):
        raise DeepresError(f"recipe {recipe.name!r}: Muon has one learning rate; head_first and depth_rate need sgd or adamw")
    path = spec_of(model).classifier
    own = {id(p) for p in model.get_submodule(path).parameters()} if path is not None else set()
    body = [p for p in model.parameters() if id(p) not in own]
    known = bool(own)  # of a network whose last layer is not known, all layers learn from the first step on
    parts = [([p for p in model.parameters() if id(p) in own], 1.0, True)]
    for part in reversed(range(DEPTH_PARTS)):
        mine = [p for i, p in enumerate(body) if i * DEPTH_PARTS // len(body) == part]
        parts.append((mine, recipe.depth_rate ** (1 - part / (DEPTH_PARTS - 1)), not known))
    groups = []
    for parameters, scale, head in parts:
        norms = [p for p in parameters if p.ndim < 2 and not recipe.decay_norms]
        others = [p for p in parameters if p.ndim >= 2 or recipe.decay_norms]
        for some, decay in ((others, recipe.weight_decay), (norms, 0.0)):
            if some:
                groups.append({"params": some, "weight_decay": decay, "scale": scale, "head": head})
    return groups


def _weights_in_branches(model: nn.Module, optimizer: Optimizer) -> list[nn.Parameter]:
    """What Muon updates, each once: matrices or convolutions of the residual branches, so no embeddings, positions or classifier."""
    what, dimensions, instead = ("matrices", 2, "adamw") if optimizer == "muon" else ("convolutions", 4, "sgd")
    modules = [module for site in sites(model) for module in site.branch_modules]
    found = {id(p): p for module in modules for p in module.parameters() if p.ndim == dimensions}
    if not found:
        raise DeepresError(
            f"{type(model).__name__}: the optimizer {optimizer!r} gives Muon the {what} of residual branches, and this network has none; "
            f"train it with the optimizer {instead!r}"
        )
    return list(found.values())


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for ``matrices``, AdamW for the parameters in ``groups``, as one optimizer.

    A matrix's step is its momentum, orthogonalised. It is scaled to the size that AdamW's steps usually have (Liu et al. 2025,
    section 2.2), so one learning rate and one weight decay serve both.
    """

    def __init__(self, matrices: list[nn.Parameter], groups: list[dict[str, Any]], recipe: Recipe) -> None:
        self.muon = torch.optim.Muon(
            matrices, recipe.lr, recipe.weight_decay, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(groups, recipe.lr, (recipe.momentum, recipe.beta2), fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's groups and state, so that whoever reads or loads these sees everything."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. A ``closure`` is not supported."""
        assert closure is None
        self.muon.step()
        self.adamw.step()


def set_rate(optimizer: torch.optim.Optimizer, lr: float, momentum: float, *, head_only: bool = False) -> None:
    """For the next step; ``momentum`` is AdamW's first beta. Muon keeps its own. ``head_only``: all but the last layer stay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0) if group.get("head", True) or not head_only else 0.0
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif "ns_steps" not in group:
            group["momentum"] = momentum


class SideOptimizer:
    """Trains a module beside a run's network, such as exit heads: made by ``Trainer.optimizer_for``.

    Its kind, weight decay and clipping are the recipe's, its learning rate and momentum those of the network's last layer in the last
    step. The module's own gradients are clipped, so that it does not change the network's steps.
    """

    def __init__(self, trainer: Trainer, module: nn.Module) -> None:
        self._trainer, self._module = trainer, module
        recipe = trainer.recipe
        others: dict[str, Optimizer] = {"muon": "adamw", "muon-sgd": "sgd"}  # a head has no residual branches for Muon
        kind = others.get(recipe.optimizer, recipe.optimizer)
        self._optimizer = optimizer_for(module, replace(recipe, optimizer=kind, head_first=0.0, depth_rate=1.0))

    def step(self) -> None:
        """Update by the gradients that the run's backward pass left, averaged over the processes; then drop them."""
        trainer = self._trainer
        # Muon's group has no momentum to take; where rates depend on the depth, the last layer has the highest
        group = max((one for one in trainer.optimizer.param_groups if "ns_steps" not in one), key=lambda one: one["lr"])
        if trainer.context.world > 1:  # a process without an example has no gradients, and takes part in the sums
            for parameter in self._module.parameters():
                if parameter.grad is None and parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        parameters = [p for p in self._module.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            trainer.context.sum(parameter.grad).div_(trainer.context.world)
        if trainer.recipe.clip:
            nn.utils.clip_grad_norm_(parameters, trainer.recipe.clip)
        set_rate(self._optimizer, group["lr"], group["betas"][0] if "betas" in group else group["momentum"])
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def last_step(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
    """Change of ``parameter`` in the last step, without weight decay; None before the first step, and for Muon, which does not keep it."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state:
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        second = state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**steps) + group["eps"]
        step: Tensor = group["lr"] / (1 - beta1**steps) * state["exp_avg"] / second
        return step
    momentum = None if "ns_steps" in group else state.get("momentum_buffer")
    return group["lr"] * momentum if momentum is not None else None
