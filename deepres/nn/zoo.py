"""Names of networks: ``create("resnet56-cifar-preact")``."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from typing import Any

from deepres.errors import DeepresError, nearest
from deepres.nn.resnet import ResNet, ResNetConfig
from deepres.nn.transformer_zoo import TRANSFORMERS, transformer

# He et al. 2015, table 1: depth -> branch, blocks of each stage.
IMAGENET: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
# CIFAR depths the papers use: He et al. 2015, table 6; 2016, tables 2 and 4. Any 6n+2 (basic) or 9n+2 (bottleneck) works.
CIFAR = (20, 32, 44, 56, 110, 164, 1001, 1202)
CIFAR_BOTTLENECK = (164, 1001)  # 164 is 6n+2 as well, but the paper's is a bottleneck
LAYERS_PER_BLOCK = {"basic": 2, "bottleneck": 3}

_NAME = re.compile(r"(resnet|plain)(\d+)(-cifar)?((?:-(?:preact|basic|bottleneck|a|b|c|v1))*)")
_OPTIONS = {field.name for field in dataclasses.fields(ResNetConfig)}


def names(pattern: str = "*") -> list[str]:
    """The papers' networks whose name matches a shell pattern (``names("*50*")``); ``create`` knows more depths."""
    known = [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in IMAGENET]
    known += [f"resnet34-{option}" for option in "abc"] + [f"resnet{depth}-v1" for depth in (50, 101, 152)]
    known += [f"{kind}{depth}-cifar" for kind in ("resnet", "plain") for depth in CIFAR]
    known += [f"resnet{depth}-preact" for depth in IMAGENET] + [f"resnet{depth}-cifar-preact" for depth in CIFAR]
    return fnmatch.filter([*known, *TRANSFORMERS], pattern)


def _cifar(name: str, depth: int, branch: str | None) -> tuple[str, tuple[int, ...]]:
    if branch is None:
        branch = "bottleneck" if depth in CIFAR_BOTTLENECK or (depth % 6 != 2 and depth % 9 == 2) else "basic"
    step = 3 * LAYERS_PER_BLOCK[branch]
    n, rest = divmod(depth - 2, step)
    if n < 1 or rest:
        low = max(n, 1) * step + 2
        near = [str(d) for d in (low, low + step) if n >= 1 or d == low]
        raise DeepresError(
            f"{name!r}: a {branch} CIFAR network has {step}n+2 layers, so not {depth}; the nearest: {' and '.join(near)}"
        )
    return branch, (n, n, n)


def config(name: str, *, width: float = 1.0, **options: Any) -> ResNetConfig:
    """The configuration behind the name of a ResNet or plain network. See ``create``."""
    if name in TRANSFORMERS:
        raise DeepresError(f"{name!r} is a Transformer, and a ResNet was asked for; `create` builds either")
    match = _NAME.fullmatch(name.lower())
    if match is None:
        raise DeepresError(f"unknown network {name!r}{nearest(name, names()) or '; see `deepres nets`'}")
    kind, depth, cifar, words = match[1], int(match[2]), bool(match[3]), match[4].split("-")[1:]
    if unknown := sorted(set(options) - _OPTIONS):
        raise DeepresError(f"{name!r} takes no option {unknown[0]!r}{nearest(unknown[0], _OPTIONS | {'width'})}")
    if width <= 0:
        raise DeepresError(f"width multiplies the number of channels and must be above 0, not {width}")
    wanted = next((word for word in words if word in LAYERS_PER_BLOCK), None)
    if cifar:
        branch, blocks = _cifar(name, depth, wanted)
    elif depth in IMAGENET:
        branch, blocks = IMAGENET[depth]
        if wanted not in (None, branch):
            raise DeepresError(f"{name!r}: the ImageNet network of depth {depth} is made of {branch} blocks")
    else:
        near = min(IMAGENET, key=lambda known: abs(known - depth))
        raise DeepresError(
            f"{name!r}: ImageNet networks have {', '.join(map(str, IMAGENET))} layers; the nearest is '{kind}{near}' "
            f"(CIFAR networks are called '{kind}20-cifar' and so on)"
        )
    option = next((word.upper() for word in words if word in ("a", "b", "c")), "A" if cifar else "B")
    if kind == "plain" and {"a", "b", "c"} & set(words):
        raise DeepresError(f"{name!r}: a plain network has no shortcut to choose")
    widths = (16, 32, 64) if cifar else (64, 128, 256, 512)
    base: dict[str, Any] = {
        "branch": branch,
        "blocks": blocks,
        "widths": tuple(max(1, round(w * width)) for w in widths),
        "shortcut": "none" if kind == "plain" else option,
        "stem": "cifar" if cifar else "imagenet",
        "preact": "preact" in words,
        "stride_in": "1x1" if "v1" in words else "3x3",
        "num_classes": 10 if cifar else 1000,
    }
    if cifar and branch == "bottleneck" and kind == "resnet" and not {"a", "c"} & set(words):
        base["shortcut"] = "B"  # He et al. 2016: the first stage's opening goes from 16 to 64 channels by projection
    return ResNetConfig(**{**base, **options})


def create(name: str, *, width: float = 1.0, **options: Any) -> Any:
    """Build a network by name: a ``ResNet``, or a ``Transformer``.

    Names: ``resnet18`` ... ``resnet152``, ``plain18`` ... for ImageNet; ``resnet20-cifar``, ``plain56-cifar``, any 6n+2 or
    9n+2 layers, for CIFAR. Words behind: ``-preact`` (He et al. 2016), ``-basic`` or ``-bottleneck``, ``-a``, ``-b``,
    ``-c`` (shortcut option), ``-v1`` (bottleneck strides in its 1x1, as in the paper; torchvision's strides in the 3x3).

    ``width`` multiplies all channels. ``options`` are fields of ``ResNetConfig``, above all ``num_classes`` and
    ``in_channels``.

    Transformers: ``gpt2``, ``gpt-tiny``, ``llama-tiny``, ``vit-s16``, ``vit-tiny-cifar``, ...; their ``width`` is the number of
    channels, and their ``options`` are ``depth`` and the fields of ``TransformerConfig``,
    such as ``vocabulary`` and ``context`` of a decoder.

    Raises ``DeepresError`` with the nearest right name, depth or option.
    """
    if name in TRANSFORMERS:
        if width != 1:
            if not float(width).is_integer():
                raise DeepresError(f"{name!r}: the width of a Transformer is its number of channels, not {width:g}")
            options["width"] = int(width)
        return transformer(name, **options)
    return ResNet(config(name, width=width, **options))
