"""Layer responses: the standard deviation of each layer's output (He et al. 2015, Fig. 7), of plain networks too."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import logits_of, uncompiled
from deepres.lens.sample import Sample

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Response:
    """One layer with weights, counted from the input."""

    name: str
    deviation: float  # standard deviation of the layer's output, behind its batch norm and before the ReLU
    inactive: float | None  # share of the values that are negative there, which a ReLU would silence; None behind the last


@torch.no_grad()
def responses(model: nn.Module, sample: Sample) -> list[Response]:
    """The response of each convolution and linear layer, in the order in which they run.

    As in the paper's Fig. 7 it is taken behind the batch norm that follows the layer, where one does, and else at the
    layer's own output.
    """
    outputs = _outputs(model, sample.inputs[0][:2])
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in outputs}

    def add(name: str, out: Tensor) -> None:
        values = out.detach().float()
        parts = (values.sum(dtype=torch.float64), values.square().sum(dtype=torch.float64), (values <= 0).sum().double())
        sums[name] += torch.stack([*parts, torch.tensor(float(values.numel()), device=values.device).double()]).cpu()

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for name, module in outputs.items():
            stack.callback(module.register_forward_hook(lambda _, __, out, name=name: add(name, out)).remove)
        for x in sample.inputs:
            logits_of(model, x)
    found = []
    for i, (name, (total, squares, negative, count)) in enumerate((n, s.tolist()) for n, s in sums.items()):
        deviation = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
        found.append(Response(name, deviation, negative / count if i < len(sums) - 1 else None))
    return found


def _outputs(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """Layer name -> the module whose output is its response, found by running once."""
    order: list[str] = []
    source: dict[str, nn.Module] = {}
    made: list[tuple[Tensor, str]] = []  # the last layer's output

    def layer(name: str, module: nn.Module, out: object) -> None:
        if isinstance(out, Tensor) and name not in source:
            order.append(name)
            source[name] = module
            made[:] = [(out, name)]

    def norm(module: nn.Module, x: Tensor) -> None:
        if made and made[0][0] is x:
            source[made[0][1]] = module

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for name, module in model.named_modules():
            if isinstance(module, _LAYERS):
                hook = module.register_forward_hook(lambda m, __, out, name=name: layer(name, m, out))
                stack.callback(hook.remove)
            elif isinstance(module, _NORMS):
                stack.callback(module.register_forward_pre_hook(lambda m, args: norm(m, args[0])).remove)
        logits_of(model, x)
    return {name: source[name] for name in order}
