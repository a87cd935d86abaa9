"""Others' checkpoints: torchvision, timm and common CIFAR re-implementations, read and written by name.

Their names differ from ours by rule, so one table of rules serves both directions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from deepres.errors import DeepresError
from deepres.models.checkpoint import unwrap
from deepres.nn.resnet import ResNet, ResNetConfig

Format = Literal["deepres", "torchvision", "timm", "cifar"]

# (theirs, ours): torchvision's and timm's names; the CIFAR ones differ in the last layer and the shortcut.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0\.", r"stages.<\1>.blocks.\2.shortcut.conv."),
    (r"^layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1\.", r"stages.<\1>.blocks.\2.shortcut.norm."),
    (r"^layer(\d+)\.(\d+)\.conv(\d)\.", r"stages.<\1>.blocks.\2.branch.conv\3."),
    (r"^layer(\d+)\.(\d+)\.bn(\d)\.", r"stages.<\1>.blocks.\2.branch.norm\3."),
    (r"^(?:fc|linear|classifier)\.", "head.fc."),
)
_BACK: tuple[tuple[str, str], ...] = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.shortcut\.conv\.", r"layer<\1>.\2.@0."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.shortcut\.norm\.", r"layer<\1>.\2.@1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.branch\.conv(\d)\.", r"layer<\1>.\2.conv\3."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.branch\.norm(\d)\.", r"layer<\1>.\2.bn\3."),
    (r"^head\.fc\.", "!fc."),
)


def _rename(name: str, rules: tuple[tuple[str, str], ...], step: int) -> str | None:
    for pattern, target in rules:
        if re.match(pattern, name):
            name = re.sub(pattern, target, name, count=1)
            return re.sub(r"<(\d+)>", lambda number: str(int(number[1]) + step), name)
    return None


_OURS = re.compile(r"(stem|head)\.|stages\.\d+\.(blocks\.\d+\.|close\.)")


def our_name(name: str) -> str:
    """Our name of another library's tensor; a name that fits no rule stays as it is."""
    return _rename(name, _RULES, -1) or name


def from_others(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names. Names of ours stay; names that fit no rule stay, to be reported."""
    found = unwrap(state, lambda name: _OURS.match(our_name(name)) is not None)
    return {our_name(name): tensor for name, tensor in found.tensors.items()}


def to_others(model: ResNet, style: Format = "torchvision") -> dict[str, Tensor]:
    """``model``'s tensors under the names of torchvision and timm (which agree), or of CIFAR re-implementations."""
    if style == "deepres":
        return dict(model.state_dict())
    if style not in ("torchvision", "timm", "cifar"):
        raise DeepresError(f"unknown weight format {style!r}; there are 'deepres', 'torchvision', 'timm' and 'cifar'")
    if model.config.preact:
        raise DeepresError("pre-activation networks have no counterpart in torchvision; save them in our own format")
    if model.config.survival < 1:  # no other format has a place for the branches' scale
        model = copy.deepcopy(model)
        model.fold_survival()
    words = {"@": "shortcut." if style == "cifar" else "downsample.", "!fc": "linear" if style == "cifar" else "fc"}
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        theirs = _rename(name, _BACK, +1) or name
        for mark, word in words.items():
            theirs = theirs.replace(mark, word)
        out[theirs] = tensor
    return out


def infer_config(state: Mapping[str, Tensor]) -> ResNetConfig:
    """Read the network's shape off the tensors of a post-activation checkpoint.

    What no tensor tells takes the usual value: stride in the 3x3, option A padding on both sides; a CIFAR network
    without projections is a residual one with option A.
    """
    ours = from_others(state)
    found: dict[int, int] = {}
    for name in ours:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    if not found or "stem.conv.weight" not in ours or "head.fc.weight" not in ours:
        raise DeepresError("these weights are not those of a residual network that deepres knows; name the network")
    branch = "bottleneck" if "stages.0.blocks.0.branch.conv3.weight" in ours else "basic"
    last = len(found) - 1
    projected = f"stages.{last}.blocks.0.shortcut.conv.weight" in ours
    everywhere = found[last] > 1 and f"stages.{last}.blocks.1.shortcut.conv.weight" in ours
    widths = tuple(ours[f"stages.{i}.blocks.0.branch.conv1.weight"].shape[0] for i in range(len(found)))
    stem = ours["stem.conv.weight"]
    return ResNetConfig(
        branch=branch,  # type: ignore[arg-type]
        blocks=tuple(found[i] for i in range(len(found))),
        widths=widths,
        shortcut="C" if everywhere else "B" if projected else "A",
        stem="imagenet" if stem.shape[-1] == 7 else "cifar",
        in_channels=stem.shape[1],
        num_classes=ours["head.fc.weight"].shape[0],
    )
