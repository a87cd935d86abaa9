"""Residual Transformers: ``x = x + attention(norm(x)); x = x + mlp(norm(x))``, as decoders of text and encoders of images.

A Transformer is a list of residual blocks like any other network here. Each block's branch is attention or an MLP, so either can be
looked at, skipped or removed by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn.attention import MLP, Attention, KeyValues, LayerCaches, MLPKind, Rotary, attentions, cached, positions_from
from deepres.nn.residual import Residual

Part = Literal["attention", "mlp"]
Norm = Literal["layer", "rms"]
Order = Literal["pre", "post", "deepnorm"]
Positions = Literal["learned", "rotary"]


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that is needed to build a Transformer again."""

    blocks: tuple[Part, ...]  # the branch of each residual block, from input to output; a full layer is "attention", "mlp"
    width: int  # channels of the signal
    heads: int  # of the queries
    kv_heads: int | None = None  # heads of keys and values; None: as many as of the queries
    hidden: int | None = None  # channels inside an MLP; None: 4 times the width
    head_width: int | None = None  # channels of a head; None: the width divided by the heads
    mlp: MLPKind = "gelu"
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    order: Order = "pre"  # where the norm stands: in the branch, behind the sum, or DeepNorm's
    positions: Positions = "learned"
    rotary_base: float = 10_000.0
    rotary_scaling: tuple[
        float, ...
    ] = ()  # for a longer context: (), (factor,) or (factor, low, high, context); see `scaled_rates`
    bias: bool = True  # of linear layers
    dropout: float = 0.0  # of the embedding and of each branch's output
    # a decoder of text
    vocabulary: int = 0  # tokens; 0 makes it an encoder of images
    context: int = 1024  # positions at most
    tie: bool = True  # the classifier shares the token embedding
    # an encoder of images
    image: int = 224  # side of the input, pixels
    patch: int = 16  # side of a patch, pixels
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for what, kinds in (("mlp", MLPKind), ("norm", Norm), ("order", Order), ("positions", Positions)):
            if getattr(self, what) not in get_args(kinds):
                raise DeepresError(f"{what} is one of {', '.join(map(repr, get_args(kinds)))}, not {getattr(self, what)!r}")
        sizes = (
            "width",
            "heads",
            "kv_heads",
            "hidden",
            "head_width",
            "context",
            "image",
            "patch",
            "in_channels",
            "num_classes",
        )
        for what in sizes:
            if getattr(self, what) is not None and getattr(self, what) < 1:
                raise DeepresError(f"{what} must be at least 1, not {getattr(self, what)}")
        if (self.head_width is None and self.width % self.heads) or self.heads % (self.kv_heads or self.heads):
            raise DeepresError(
                f"width {self.width}, heads {self.heads} and kv_heads {self.kv_heads}: each must be a multiple of the next"
            )
        if self.positions == "rotary" and self.channels_per_head % 2:
            raise DeepresError(f"rotary positions turn pairs of channels, and a head has {self.channels_per_head}")
        if len(self.rotary_scaling) not in (0, 1, 4):
            raise DeepresError(f"rotary_scaling is (), (factor,) or (factor, low, high, context), not {self.rotary_scaling}")
        if not self.vocabulary and self.image % self.patch:
            raise DeepresError(f"an image of {self.image} pixels a side does not divide into patches of {self.patch}")
        if not self.vocabulary and self.positions == "rotary":
            raise DeepresError("rotary positions are for text; an encoder of images learns its positions")
        if set(self.blocks) - {"attention", "mlp"}:
            raise DeepresError(f"blocks are 'attention' or 'mlp', not {sorted(set(self.blocks) - {'attention', 'mlp'})}")
        if not 0 <= self.dropout < 1:
            raise DeepresError(f"dropout is the share of values left out, from 0 to below 1, not {self.dropout}")

    @property
    def channels_per_head(self) -> int:
        """Channels of a query, a key or a value."""
        return self.head_width or self.width // self.heads

    @property
    def depth(self) -> int:
        """Residual blocks."""
        return len(self.blocks)


class Scale(nn.Module):
    """Multiply by a constant: DeepNorm's shortcut."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class Patches(nn.Module):
    """Cut images into patches and embed each: (N, C, H, W) -> (N, 1 + patches, width), a class token first (Dosovitskiy et al. 2021)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.side = config.image
        self.project = nn.Conv2d(config.in_channels, config.width, config.patch, config.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.width))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.side, self.side):
            raise DeepresError(f"the network takes images of {self.side}x{self.side} pixels, not {tuple(images.shape[-2:])}")
        patches = self.project(images).flatten(2).transpose(1, 2)
        # not len(patches), which would fix the batch size in an exported graph
        return torch.cat((self.token.expand(patches.shape[0], -1, -1), patches), dim=1)


class Transformer(nn.Module):
    """A residual Transformer: a decoder of text where ``config.vocabulary`` is above 0, else an encoder of images.

    Decoder: tokens (N, L) -> logits (N, L, vocabulary), of the next token at each position. Encoder: images (N, C, H, W) ->
    logits (N, num_classes).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        text = config.vocabulary > 0
        self.embed: nn.Module = nn.Embedding(config.vocabulary, config.width) if text else Patches(config)
        length = config.context if text else 1 + (config.image // config.patch) ** 2
        learned = config.positions == "learned"
        self.positions = nn.Parameter(torch.zeros(length, config.width)) if learned else None
        self.drop = nn.Dropout(config.dropout)
        rotary = (
            None if learned else Rotary(config.channels_per_head, config.context, config.rotary_base, config.rotary_scaling)
        )
        self.blocks = nn.Sequential(*(_block(config, part, rotary) for part in config.blocks))
        self.norm = _norm(config) if config.order == "pre" else nn.Identity()
        self.head = nn.Linear(config.width, config.vocabulary or config.num_classes, bias=not text)
        initialise_transformer(self)
        if text and config.tie:
            self.head.weight = self.embed.weight  # type: ignore[assignment]

    def forward(self, inputs: Tensor, cache: list[KeyValues] | None = None) -> Tensor:
        """With a ``cache`` (see ``empty_cache``), ``inputs`` are the tokens behind those that it holds.

        Raises ``DeepresError`` for more positions than the context has.
        """
        x, start = self.embed(inputs), cache[0].start if cache else 0
        end = (start if isinstance(start, int) else int(start.max())) + x.shape[1]
        if self.config.vocabulary and end > self.config.context:
            raise DeepresError(f"{end} tokens are longer than the context of {self.config.context}")
        if self.positions is not None:
            x = x + self.positions[positions_from(start, x.shape[1], x.device) if self.config.vocabulary else slice(None)]
        with cached(self, cache) if cache is not None else nullcontext():
            x = self.norm(self.blocks(self.drop(x)))
        return self.head(x if self.config.vocabulary else x[:, 0])

    def empty_cache(self, rows: int) -> list[KeyValues]:
        """Caches for ``rows`` sequences, one for each attention block."""
        return LayerCaches(self, (attention.empty_cache(rows, self.config.context) for attention in attentions(self)))


def _norm(config: TransformerConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.norm_eps)


def _block(config: TransformerConfig, part: Part, rotary: Rotary | None) -> Residual:
    """One residual block. Pre-norm: x + f(norm(x)). Post-norm: norm(x + f(x)). DeepNorm: norm(alpha x + f(x)) (Wang et al. 2022)."""
    core: Attention | MLP
    if part == "attention":
        causal = config.vocabulary > 0
        core = Attention(
            config.width,
            config.heads,
            config.kv_heads,
            causal=causal,
            bias=config.bias,
            rotary=rotary,
            head_width=config.head_width,
        )
    else:
        core = MLP(config.width, config.hidden or 4 * config.width, config.mlp, bias=config.bias)
    pre = config.order == "pre"
    norm = _norm(config) if pre else nn.Identity()
    branch = nn.Sequential(OrderedDict(norm=norm, core=core, drop=nn.Dropout(config.dropout)))
    shortcut = Scale(deepnorm(config)[0]) if config.order == "deepnorm" else None
    return Residual(branch, shortcut, None if pre else _norm(config))


def deepnorm(config: TransformerConfig) -> tuple[float, float]:
    """(alpha of the shortcut, beta of the initialisation) for M layers: (2M)^(1/4), (8M)^(-1/4) (Wang et al. 2022, table 1)."""
    layers = max(1, sum(part == "mlp" for part in config.blocks))
    return (2 * layers) ** 0.25, (8 * layers) ** -0.25


@torch.no_grad()
def initialise_transformer(model: Transformer) -> None:
    """GPT-2's initialisation (Radford et al. 2019): normal with deviation 0.02, and biases zero.

    The layer that ends a pre-norm branch is divided by the square root of the number of branches, so that the signal's variance does
    not grow with the depth. With DeepNorm, Xavier's initialisation is scaled by beta in the MLP, the values and the layer that ends a
    branch.
    """
    config = model.config
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if config.order == "pre" and getattr(module, "ends_branch", False):
            module.weight.mul_(max(1, config.depth) ** -0.5)  # type: ignore[operator]
    if model.positions is not None:
        nn.init.normal_(model.positions, std=0.02)
    if config.order == "deepnorm":
        _initialise_deepnorm(model, deepnorm(config)[1])


def _initialise_deepnorm(model: Transformer, beta: float) -> None:
    for module in model.modules():
        if isinstance(module, MLP):
            for layer in (module.up, module.down):
                nn.init.xavier_normal_(layer.weight, gain=beta)
        elif isinstance(module, Attention):
            queries = (module.heads + module.kv_heads) * module.head_width  # and keys
            nn.init.xavier_normal_(module.qkv.weight[:queries])
            nn.init.xavier_normal_(module.qkv.weight[queries:], gain=beta)
            nn.init.xavier_normal_(module.out.weight, gain=beta)
