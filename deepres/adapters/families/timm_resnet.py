"""timm's ResNets, with what stands in their blocks: squeeze and excitation, Res2Net, ResNeSt, selective kernels; ResNetV2."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._timm import Timm, timm_model
from deepres.adapters.patterns import SitePattern

_end, _m = ("drop_path", "se"), "timm.models."
_preact = (SitePattern(("drop_path",), ("downsample",), shared=("norm1",)),)


def _resnet(name: str, reference: str, other_additions: int = 0) -> Example:
    build, rebuild = (timm_model(reference, layers=(1, 1, 1, last)) for last in (2, 1))
    return Example(name, build, 5, other_additions=other_additions, rebuild=rebuild)


ADAPTER = Timm(
    "ResNet, ResNeXt, SE-ResNet, Res2Net, ResNeSt, SKNet, ResNetV2",
    "timm",
    tuple(_m + name for name in ("resnet", "res2net", "resnest", "sknet", "resnetv2")),
    {
        _m + "resnet:BasicBlock": (SitePattern((*_end, "bn2"), ("downsample",), ("act2",)),),
        _m + "resnet:Bottleneck": (SitePattern((*_end, "bn3"), ("downsample",), ("act3",)),),
        _m + "res2net:Bottle2neck": (SitePattern((*_end, "bn3"), ("downsample",), ("relu",)),),
        _m + "resnest:ResNestBottleneck": (SitePattern(("bn3",), ("downsample",), ("act3",)),),
        _m + "sknet:SelectiveKernelBasic": (SitePattern((*_end, "conv2"), ("downsample",), ("act",)),),
        _m + "sknet:SelectiveKernelBottleneck": (SitePattern((*_end, "conv3"), ("downsample",), ("act",)),),
        _m + "resnetv2:PreActBasic": _preact,
        _m + "resnetv2:PreActBottleneck": _preact,
        _m + "resnetv2:Bottleneck": (SitePattern(("drop_path",), ("downsample",), ("act3",)),),
    },
    notes="in pre-activation blocks that open a stage, branch and shortcut share a norm, so their gradients are not separated",
    examples=(
        _resnet("ResNet", "test_resnet"),
        _resnet("SE-ResNet", "seresnet18"),
        _resnet("Res2Net", "res2net50_26w_4s", other_additions=2),
        _resnet("ResNeSt", "resnest14d"),
        _resnet("SKNet", "skresnet18"),
        _resnet("ResNetV2", "resnetv2_50"),
    ),
)
