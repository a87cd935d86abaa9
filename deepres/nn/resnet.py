"""Residual and plain networks: stem -> stages of blocks -> head."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn.branch import Branch, StrideIn, basic, bottleneck
from deepres.nn.init import Init, initialise
from deepres.nn.residual import Residual, plain
from deepres.nn.shortcut import Option, Padding, shortcut


@dataclass(frozen=True)
class ResNetConfig:
    """All that is needed to build a network again."""

    branch: Literal["basic", "bottleneck"]  # the residual branch
    blocks: tuple[int, ...]  # how many blocks each stage has
    widths: tuple[int, ...]  # channels inside each stage's blocks; a bottleneck puts out `expansion` times as many
    shortcut: Literal["A", "B", "C", "none"] = "B"  # "none" makes it a plain network
    stem: Literal["imagenet", "cifar"] = "imagenet"  # 7x7 / 2 and a max pool, or one 3x3
    preact: bool = False  # pre-activation (He et al. 2016)
    stride_in: StrideIn = "3x3"  # where a bottleneck strides: "1x1" is the paper's, "3x3" torchvision's
    padding: Padding = "both"  # where option A puts the new channels
    expansion: int = 4  # of the bottleneck
    in_channels: int = 3
    num_classes: int = 1000
    zero_init: bool = False  # start each block as the identity (Goyal et al. 2017)
    norm: bool = True  # batch norm behind each convolution; without it they have biases
    init: Init = "he"  # "gaussian": a fixed deviation of 0.01, as was usual before
    dropout: float = 0.0  # in front of the classifier: the share of features that a training step leaves out
    survival: float = 1.0  # stochastic depth: of the last branch; the others' falls to it linearly from 1 (Huang et al. 2016)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise DeepresError(f"blocks {self.blocks} and widths {self.widths} must name the same number of stages")
        for what, values in (("blocks", self.blocks), ("widths", self.widths)):
            if min(values) < 1:
                raise DeepresError(f"{what} {values}: every stage needs at least 1")
        for what in ("in_channels", "num_classes", "expansion"):
            if getattr(self, what) < 1:
                raise DeepresError(f"{what} must be at least 1, not {getattr(self, what)}")
        if self.branch not in ("basic", "bottleneck"):
            raise DeepresError(f"unknown branch {self.branch!r}; there are 'basic' and 'bottleneck'")
        if self.shortcut not in ("A", "B", "C", "none"):
            raise DeepresError(f"unknown shortcut {self.shortcut!r}; there are 'A', 'B', 'C' and 'none' (a plain net)")
        if self.stem not in ("imagenet", "cifar"):
            raise DeepresError(f"unknown stem {self.stem!r}; there are 'imagenet' and 'cifar'")
        if self.stride_in not in ("1x1", "3x3") or self.padding not in ("both", "end"):
            raise DeepresError("stride_in is '1x1' or '3x3', and padding is 'both' or 'end'")
        if not 0 <= self.dropout < 1:
            raise DeepresError(f"dropout is the share of features left out, from 0 to below 1, not {self.dropout}")
        if not 0 < self.survival <= 1:
            raise DeepresError(f"survival is a probability above 0 and at most 1, not {self.survival}")
        if self.survival < 1 and self.is_plain:
            raise DeepresError("a plain network has no shortcut, so none of its layers can be left out: survival must be 1")
        if self.init not in ("he", "gaussian"):
            raise DeepresError(f"unknown init {self.init!r}; there are 'he' and 'gaussian'")

    @property
    def is_plain(self) -> bool:
        return self.shortcut == "none"

    @property
    def depth(self) -> int:
        """Layers with weights on the main path, as the papers count them."""
        return sum(self.blocks) * (2 if self.branch == "basic" else 3) + 2

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that each stage puts out."""
        return tuple(w * (self.expansion if self.branch == "bottleneck" else 1) for w in self.widths)


class Stage(nn.Module):
    """Blocks that work at one resolution.

    Every stage hands on an activated signal. A post-activation block does so by itself; behind the last sum of a
    pre-activation stage stands the norm and ReLU that the next stage's two paths share (or the head, behind the last one).
    """

    def __init__(self, blocks: list[nn.Module], close: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.close = close if close is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.blocks(x))


class ResNet(nn.Module):
    """A residual network, or with ``shortcut="none"`` its plain counterpart.

    Input (N, in_channels, H, W), any size that the strides leave at least one pixel of; output (N, num_classes) logits.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        stem_out = config.widths[0]
        self.stem = _stem(config, stem_out)
        self.stages = nn.ModuleList(
            _stage(config, i, channels_in) for i, channels_in in enumerate((stem_out, *config.channels[:-1]))
        )
        head: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        if config.dropout:
            head["drop"] = nn.Dropout(config.dropout)
        head["fc"] = nn.Linear(config.channels[-1], config.num_classes)
        self.head = nn.Sequential(head)
        branches = [module for module in self.modules() if isinstance(module, Branch)]
        for i, branch in enumerate(branches, 1):
            branch.survival = 1 - i / len(branches) * (1 - config.survival)
        initialise(self, zero_last=config.zero_init, how=config.init)

    def fold_survival(self) -> None:
        """End stochastic depth: the outputs in eval mode stay, and training computes every branch from now on."""
        for module in self.modules():
            if isinstance(module, Branch):
                module.fold_survival()
        self.config = dataclasses.replace(self.config, survival=1.0)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, channels[-1], H', W')."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _stem(config: ResNetConfig, channels: int) -> nn.Sequential:
    size, stride = (3, 1) if config.stem == "cifar" else (7, 2)
    conv = nn.Conv2d(config.in_channels, channels, size, stride, size // 2, bias=not config.norm)
    layers: list[tuple[str, nn.Module]] = [("conv", conv)]
    if config.norm:
        layers.append(("norm", nn.BatchNorm2d(channels)))
    layers.append(("act", nn.ReLU(inplace=True)))
    if config.stem == "imagenet":
        layers.append(("pool", nn.MaxPool2d(3, 2, 1)))
    return nn.Sequential(OrderedDict(layers))


def _stage(config: ResNetConfig, index: int, channels_in: int) -> Stage:
    channels_out = config.channels[index]
    ins = (channels_in, *[channels_out] * (config.blocks[index] - 1))
    blocks = [
        _block(config, config.widths[index], (a, b), stride=2 if i == 0 and index > 0 else 1, opening=i == 0)
        for i, (a, b) in enumerate(pairwise((*ins, channels_out)))
    ]
    close = None
    if config.preact:
        norm = nn.BatchNorm2d(channels_out) if config.norm else nn.Identity()
        close = nn.Sequential(OrderedDict(norm=norm, act=nn.ReLU(inplace=True)))
    return Stage(blocks, close)


def _block(config: ResNetConfig, width: int, channels: tuple[int, int], stride: int, opening: bool) -> nn.Module:
    if config.branch == "basic":
        branch = basic(channels[0], width, stride, preact=config.preact, opening=opening, norm=config.norm)
    else:
        branch = bottleneck(
            channels[0],
            width,
            stride,
            preact=config.preact,
            opening=opening,
            stride_in=config.stride_in,
            expansion=config.expansion,
            norm=config.norm,
        )
    after = nn.Identity() if config.preact else nn.ReLU(inplace=True)
    if config.shortcut == "none":
        return plain(branch, after)
    option: Option = config.shortcut
    path = shortcut(option, *channels, stride, padding=config.padding, norm=config.norm and not config.preact)
    return Residual(branch, path, after)
