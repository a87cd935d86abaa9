"""Names of Transformers: ``transformer("gpt-tiny")``, ``transformer("vit-s16", num_classes=10)``."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any

from deepres.errors import DeepresError, nearest
from deepres.nn.transformer import Part, Transformer, TransformerConfig


def layers(count: int) -> tuple[Part, ...]:
    """The blocks of ``count`` full layers: attention and MLP in turn."""
    return ("attention", "mlp") * count


def _gpt(count: int, width: int, heads: int, *, vocabulary: int = 50_257, context: int = 1024) -> TransformerConfig:
    """GPT-2 (Radford et al. 2019)."""
    return TransformerConfig(layers(count), width, heads, mlp="gelu-tanh", vocabulary=vocabulary, context=context)


def _llama(
    count: int, width: int, heads: int, kv_heads: int, hidden: int, *, vocabulary: int, context: int
) -> TransformerConfig:
    """RMSNorm, rotary positions, SwiGLU, grouped queries, no biases (Touvron et al. 2023)."""
    return TransformerConfig(
        layers(count),
        width,
        heads,
        kv_heads,
        hidden,
        mlp="swiglu",
        norm="rms",
        norm_eps=1e-6,
        positions="rotary",
        bias=False,
        vocabulary=vocabulary,
        context=context,
        tie=False,
    )


def _vit(
    count: int, width: int, heads: int, *, image: int = 224, patch: int = 16, num_classes: int = 1000
) -> TransformerConfig:
    """ViT and DeiT (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1)."""
    return TransformerConfig(layers(count), width, heads, norm_eps=1e-6, image=image, patch=patch, num_classes=num_classes)


TRANSFORMERS: dict[str, TransformerConfig] = {
    "gpt-tiny": _gpt(4, 128, 4, vocabulary=256, context=64),
    "gpt2": _gpt(12, 768, 12),
    "gpt2-medium": _gpt(24, 1024, 16),
    "gpt2-large": _gpt(36, 1280, 20),
    "gpt2-xl": _gpt(48, 1600, 25),
    "llama-tiny": _llama(4, 128, 4, 2, 344, vocabulary=256, context=64),
    "vit-tiny-cifar": _vit(6, 192, 3, image=32, patch=4, num_classes=10),
    "vit-t16": _vit(12, 192, 3),
    "vit-s16": _vit(12, 384, 6),
    "vit-b16": _vit(12, 768, 12),
}
_FIELDS = {field.name for field in dataclasses.fields(TransformerConfig)}


def transformer_names(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern."""
    return fnmatch.filter(TRANSFORMERS, pattern)


def transformer(name: str, *, depth: int | None = None, **options: Any) -> Transformer:
    """Build a Transformer by name.

    ``depth`` replaces the number of full layers. ``options`` are fields of ``TransformerConfig``, such as ``vocabulary``, ``context``,
    ``num_classes`` and ``order``.

    Raises ``DeepresError`` with the nearest right name or option.
    """
    if name not in TRANSFORMERS:
        hint = nearest(name, TRANSFORMERS) or f"; there are {', '.join(TRANSFORMERS)}"
        raise DeepresError(f"unknown network {name!r}{hint}")
    if unknown := sorted(set(options) - _FIELDS):
        raise DeepresError(f"{name!r} takes no option {unknown[0]!r}{nearest(unknown[0], _FIELDS | {'depth'})}")
    if depth is not None:
        if depth < 1:
            raise DeepresError(f"{name!r}: depth is the number of layers and at least 1, not {depth}")
        options["blocks"] = layers(depth)
    return Transformer(dataclasses.replace(TRANSFORMERS[name], **options))
