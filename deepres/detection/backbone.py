"""The shared part of a detector: a network without its classifier, giving feature maps, with or without a feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from deepres.adapters import Level

NORMS = (nn.modules.batchnorm._BatchNorm,)  # the kinds of norm that keep running statistics


class Body(nn.Module):
    """``net`` up to the last of ``levels``, (N, C, H, W) -> one feature map (N, C', H / stride, W / stride) for each level taken.

    ``net`` keeps its modules under their names, so that its sites are found and its blocks are deleted as in the network itself. What
    stands behind the last level is taken out. Levels behind the last one
    taken are not run here; `StageHead` runs them on each region.

    ``frozen``: batch norms keep their statistics, scales and shifts while the rest is trained, as with pretrained weights in small
    batches. ``fixed``: the weights of this many of the first levels are not trained.
    """

    def __init__(self, net: nn.Module, levels: Sequence[Level], take: Sequence[int], *, frozen: bool, fixed: int = 0) -> None:
        super().__init__()
        self.net = net
        self.levels = tuple(tuple(level.paths) for level in levels[: max(take) + 1])
        self.take = tuple(take)
        self.frozen = frozen
        prune(net, [path for level in levels for path in level.paths])
        for level in levels[:fixed]:
            for path in level.paths:
                net.get_submodule(path).requires_grad_(False)
        if frozen:
            for norm in norms_of(net):
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        if self.frozen:
            for norm in norms_of(self.net):
                norm.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = OrderedDict()
        for index, paths in enumerate(self.levels):
            for path in paths:
                x = self.net.get_submodule(path)(x)
            if index in self.take:
                maps[str(len(maps))] = x
        return maps


def norms_of(model: nn.Module) -> Iterable[nn.Module]:
    """The norms of ``model`` that keep running statistics."""
    return (module for module in model.modules() if isinstance(module, NORMS))


def prune(net: nn.Module, paths: Iterable[str]) -> None:
    """Replace every module of ``net`` that neither is at one of ``paths``, nor inside or around one, by the identity."""
    paths = set(paths)
    around = {path.rpartition(".")[0] for path in paths}
    while parents := {path.rpartition(".")[0] for path in around if path} - around:
        around |= parents
    for place in sorted(around):
        owner = net.get_submodule(place)
        for name, child in list(owner.named_children()):
            path = f"{place}.{name}" if place else name
            if path not in paths and path not in around and any(True for _ in child.parameters()):
                setattr(owner, name, nn.Identity())


class PyramidBackbone(nn.Module):
    """A body with a feature pyramid on top (Lin et al. 2017): maps "0", "1", ... and "pool", all of ``channels`` channels.

    ``norm``: batch norm behind each convolution of the pyramid, which training without pretrained weights needs.
    """

    def __init__(self, body: Body, channels_in: Sequence[int], channels: int, *, norm: bool) -> None:
        super().__init__()
        self.body = body
        layer = nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(list(channels_in), channels, extra_blocks=LastLevelMaxPool(), norm_layer=layer)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(x))


class PlainBackbone(nn.Module):
    """A body whose last feature map, "0", is all that the proposals and the regions' features are taken from."""

    def __init__(self, body: Body, channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.body(x)
