"""Optimizers: SGD with momentum, as the papers train, and AdamW, as Transformers do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deepres.training.recipe import Optimizer, Recipe

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
