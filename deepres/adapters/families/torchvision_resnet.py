"""torchvision's ResNet, ResNeXt and Wide ResNet."""

from __future__ import annotations

from torch import nn

from deepres.adapters.adapter import Example
from deepres.adapters.families._torchvision import Torchvision
from deepres.adapters.patterns import SitePattern


def _basic(*blocks: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, list(blocks), num_classes=10)


def _resnext(*blocks: int) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, list(blocks), num_classes=10, groups=4, width_per_group=4)


ADAPTER = Torchvision(
    "ResNet, ResNeXt, Wide ResNet",
    "torchvision",
    ("torchvision.models.resnet",),
    {
        "torchvision.models.resnet:BasicBlock": (SitePattern(("bn2",), ("downsample",), ("relu",)),),
        "torchvision.models.resnet:Bottleneck": (SitePattern(("bn3",), ("downsample",), ("relu",)),),
    },
    examples=(
        Example("ResNet", lambda: _basic(1, 1, 1, 2), 5, rebuild=lambda: _basic(1, 1, 1, 1)),
        Example("ResNeXt", lambda: _resnext(1, 2, 1, 1), 5, rebuild=lambda: _resnext(1, 1, 1, 1)),
    ),
)
