"""Attention and MLP, the two branches of a residual Transformer, and the cache that generation keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLPKind = Literal["gelu", "gelu-tanh", "swiglu"]
SHORT = 128  # positions up to which ``attend`` computes the scores of bfloat16 explicitly on a CPU; their memory grows with the square


class KeyValues:
    """Keys and values of one attention layer for the positions seen so far, (N, G, L, D) each, in memory taken once.

    ``G`` is the number of key-value heads, ``L`` the number of positions up to ``context``, ``D`` the width of a head.
    """

    def __init__(self, rows: int, heads: int, context: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.empty(rows, heads, context, width, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    @property
    def start(self) -> int | Tensor:
        """The position of the next token; (N, 1) where it differs from row to row."""
        return self.length

    def mask(self, new: int, seen: int) -> Tensor | None:
        """The mask of the ``seen`` positions that each of the ``new`` last ones attends to; None for all, and for the causal triangle."""
        if not 1 < new < seen:
            return None
        return torch.ones(new, seen, dtype=torch.bool, device=self.keys.device).tril(seen - new)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (N, G, T, D) keys and values; return those of all positions, (N, G, L + T, D)."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        self.length = min(self.length, length)


def positions_from(start: int | Tensor, count: int, device: torch.device) -> Tensor:
    """The positions of ``count`` tokens: (L,) from a number on, or (N, L) from one for each row, (N, 1)."""
    return start + torch.arange(count, device=device)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021): pair i of a head's channels turns by ``position / base^(2i / D)`` radians.

    Channel i is paired with channel ``i + D / 2``, as in Llama. ``scaling`` stretches the rates over a longer context: see
    ``scaled_rates``.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, context: int, base: float = 10_000.0, scaling: Sequence[float] = ()) -> None:
        super().__init__()
        rates = scaled_rates(base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), scaling)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), rates).repeat(1, 2)
        # Computed from the configuration, so checkpoints do not hold it.
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """Rotate (N, H, L, D) whose first position is ``start``, or (N, 1) of them."""
        at = positions_from(start, x.shape[2], x.device)
        cos, sin = (table[at].to(x.dtype).unsqueeze(-3) for table in (self.cos, self.sin))  # the same for all heads
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin


def scaled_rates(rates: Tensor, scaling: Sequence[float]) -> Tensor:
    """Rotary rates, radians a position, for a longer context than the one in which they were learnt.

    ``()`` keeps them and ``(factor,)`` divides them all (Chen et al. 2023, position interpolation). Llama 3.1's rule ``(factor, low,
    high, context)`` divides those that turn fewer than ``low`` times in the first ``context``, keeps those that turn more than
    ``high`` times, and goes from one to the other linearly in the number of turns.
    """
    if len(scaling) < 2:
        return rates / scaling[0] if scaling else rates
    factor, low, high, context = scaling
    kept = ((context * rates / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
    return kept * rates + (1 - kept) * rates / factor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention: queries (N, H, L, D), keys and values (N, G, S, D), of which each serves H / G heads -> (N, H, L, D).

    Few positions of bfloat16 on a CPU are attended to by explicit matrix products while gradients are needed: the backward pass of
    PyTorch's fused kernel takes four times as long for them, and more than it does in float32.
    """
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and q.requires_grad and mask is None and k.shape[2] <= SHORT:
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


class Attention(nn.Module):
    """Multi-head attention with grouped queries (Vaswani et al. 2017; Ainslie et al. 2023): (N, L, C) -> (N, L, C).

    ``kv_heads`` heads of keys and values are shared by ``heads / kv_heads`` query heads each. ``causal`` attention sees no later
    position.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        causal: bool,
        bias: bool = True,
        rotary: Rotary | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.causal = heads, kv_heads or heads, causal
        self.head_width = head_width or width // heads
        self.rotary = rotary
        self.cache: KeyValues | None = None  # of the call under way; see ``cached``
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_width, bias)
        self.out = nn.Linear(heads * self.head_width, width, bias)
        self.out.ends_branch = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """With a cache, ``x`` holds the next positions only; their keys and values are added to it."""
        cache = self.cache
        start = cache.start if cache is not None else 0
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2).split(sizes, dim=1)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        new, seen = q.shape[2], k.shape[2]
        # One new position sees all before it. Several behind a cache need the lower right corner of the causal mask.
        mask = cache.mask(new, seen) if cache is not None and self.causal else None
        causal = self.causal and new == seen and mask is None
        y = attend(q, k, v, mask, causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def empty_cache(self, rows: int, context: int) -> KeyValues:
        """A cache for ``rows`` sequences of up to ``context`` positions."""
        weight = self.qkv.weight
        return KeyValues(rows, self.kv_heads, context, self.head_width, dtype=weight.dtype, device=weight.device)


class LayerCaches(list[KeyValues]):
    """A cache for each attention layer of ``model``, in order. The layers are looked up once, not at each token."""

    def __init__(self, model: nn.Module, caches: Iterable[KeyValues]) -> None:
        super().__init__(caches)
        self.model, self.layers = model, attentions(model)


@contextmanager
def cached(model: nn.Module, caches: Sequence[KeyValues]) -> Iterator[None]:
    """While open, the attention layers of ``model`` work with ``caches``, one each, in order.

    The cache is not an argument of ``forward``, so that blocks take the signal alone and stand in an ordinary sequence.
    """
    layers = caches.layers if isinstance(caches, LayerCaches) and caches.model is model else attentions(model)
    for layer, cache in zip(layers, caches, strict=True):
        layer.cache = cache
    try:
        yield
    finally:
        for layer in layers:
            layer.cache = None


def attentions(model: nn.Module) -> list[Attention]:
    """The attention layers of ``model``, in order."""
    return [module for module in model.modules() if isinstance(module, Attention)]


class MLP(nn.Module):
    """A position-wise network: ``W2 gelu(W1 x)``, or with ``"swiglu"`` ``W2 (silu(Wg x) * W1 x)`` (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, kind: MLPKind = "gelu", *, bias: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(width, hidden * (2 if kind == "swiglu" else 1), bias)
        self.down = nn.Linear(hidden, width, bias)
        self.down.ends_branch = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, C)."""
        h = self.up(x)
        if self.kind == "swiglu":
            gate, h = h.chunk(2, dim=-1)
            return self.down(F.silu(gate) * h)
        return self.down(F.gelu(h, approximate="tanh" if self.kind == "gelu-tanh" else "none"))
