"""The constructed solution: a deeper network that computes what a shallower one does (He et al. 2015, section 1)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn.residual import Residual
from deepres.nn.resnet import ResNet, Stage


def deepen(model: ResNet, blocks: Sequence[int], images: Tensor | None = None) -> ResNet:
    """A copy of ``model`` with more blocks, which gives the same outputs.

    ``blocks``: how many each stage shall have, at least as many as now. New blocks stand at the end of their stage and compute
    the identity: in a residual network by a branch whose last layer is zero, in a plain one by Dirac convolutions and norms
    that put back what they take away. Their other weights are fresh, so that they can learn.

    ``images`` (N, C, H, W): a batch of typical inputs. A plain network's new norms take their statistics from it, so that the
    copy also behaves alike in training mode, where batch norm normalises by the batch; without it only in eval mode.

    Raises ``DeepresError`` for fewer blocks than there are, and where a plain network cannot compute the identity: through a
    bottleneck, and before the activation.
    """
    if model.config.survival < 1:
        model = copy.deepcopy(model)
        model.fold_survival()
    config = model.config
    blocks = tuple(blocks)
    if len(blocks) != len(config.blocks) or any(new < old for new, old in zip(blocks, config.blocks, strict=True)):
        raise DeepresError(f"deepen only adds blocks: this network has {config.blocks}, which cannot become {blocks}")
    if config.is_plain and (config.branch != "basic" or config.preact):
        raise DeepresError("a plain network computes the identity only with basic blocks that end in their activation")
    like = next(model.parameters())
    deeper = ResNet(dataclasses.replace(config, blocks=blocks)).to(like.device, like.dtype)
    deeper.stem, deeper.head = copy.deepcopy(model.stem), copy.deepcopy(model.head)
    for old, new in zip(model.stages, deeper.stages, strict=True):
        assert isinstance(old, Stage) and isinstance(new, Stage)
        new.close = copy.deepcopy(old.close)
        for i, block in enumerate(new.blocks):
            if i < len(old.blocks):
                new.blocks[i] = copy.deepcopy(old.blocks[i])
            elif isinstance(block, Residual):
                last = block.branch.last
                nn.init.zeros_(last.weight)  # type: ignore[union-attr, arg-type]
                if last.bias is not None:  # type: ignore[union-attr]
                    nn.init.zeros_(last.bias)  # type: ignore[union-attr, arg-type]
            else:
                _dirac(block)
    deeper.train(model.training)
    if config.is_plain and config.norm:
        _undo_norms(deeper, [len(stage.blocks) for stage in model.stages], images)  # type: ignore[arg-type]
    return deeper


def _dirac(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def _undo_norms(model: ResNet, old: list[int], images: Tensor | None) -> None:
    """Give the new norms of a plain network scales and shifts that undo their normalisation."""
    new = [norm for stage, count in zip(model.stages, old, strict=True) for block in list(stage.blocks)[count:]  # type: ignore[arg-type]
           for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)]  # fmt: skip

    def neutral(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.bias.copy_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())

    for norm in new:
        zeros = torch.zeros_like(norm.bias)
        neutral(norm, zeros, zeros + 1)
    if images is None:
        return

    def take(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].float()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        neutral(norm, mean, variance)  # type: ignore[arg-type]

    handles = [norm.register_forward_pre_hook(take) for norm in new]
    training = model.training
    try:
        model.eval()(images)  # each new norm is set before it is applied, so the next one sees an unchanged signal
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
