"""Optimizers: SGD with momentum, as the papers train, and AdamW, as Transformers do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepres.training.recipe import Optimizer, Recipe

if TYPE_CHECKING:
    from deepres.training.trainer import Trainer

KEPT: dict[Optimizer, int] = {"sgd": 1, "adamw": 2}  # values of each weight, from step to step


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """``"sgd"``: v = mu v + g; w -= lr v, as PyTorch writes it. ``"adamw"``: Loshchilov & Hutter 2019.

    Weight decay acts on norms and biases only where the recipe says so.
    """
    norms = [p for p in model.parameters() if p.ndim < 2 and not recipe.decay_norms]
    others = [p for p in model.parameters() if p.ndim >= 2 or recipe.decay_norms]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": recipe.weight_decay}]
    if norms:
        groups.append({"params": norms, "weight_decay": 0.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, (recipe.momentum, recipe.beta2), fused=True)
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """For the next step; ``momentum`` is AdamW's first beta."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


class SideOptimizer:
    """Trains a module beside a run's network, such as exit heads: made by ``Trainer.optimizer_for``.

    Its kind, weight decay and clipping are the recipe's, its learning rate and momentum those of the network's last step. The
    module's own gradients are clipped, so that it does not change the network's steps.
    """

    def __init__(self, trainer: Trainer, module: nn.Module) -> None:
        self._trainer, self._module = trainer, module
        self._optimizer = optimizer_for(module, trainer.recipe)

    def step(self) -> None:
        """Update by the gradients that the run's backward pass left, averaged over the processes; then drop them."""
        trainer, group = self._trainer, self._trainer.optimizer.param_groups[0]
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
    """What the last step took from ``parameter``, weight decay apart; None before the first."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state:
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        second = state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**steps) + group["eps"]
        step: Tensor = group["lr"] / (1 - beta1**steps) * state["exp_avg"] / second
        return step
    momentum = state.get("momentum_buffer")
    return group["lr"] * momentum if momentum is not None else None
