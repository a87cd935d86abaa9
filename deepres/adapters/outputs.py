"""Outputs of networks of any library, and the logits in them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deepres.errors import DeepresError


def logits_in(out: Any) -> Tensor:
    """(N, K), or (N, L, K) of a language model, out of what a network gave. Hugging Face's models wrap them.

    Raises ``DeepresError`` for anything else.
    """
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.ndim not in (2, 3):
        what = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise DeepresError(f"the network gives {what}, not logits (N, classes); wrap it so that it does")
    return out


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's logits for ``inputs``."""
    return logits_in(model(inputs))


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) in float32 and (M,): every token of a language model is an answer of its own."""
    return logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
