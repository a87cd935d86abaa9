"""The logit lens: the answer that a language model would give if its depth ended at each site, and where it is settled."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepres.adapters import Observation, Site, kept_modes, logits_of, sites, uncompiled, unwrapped
from deepres.adapters.calls import with_signal
from deepres.data import Vocabulary
from deepres.errors import DeepresError


@dataclass(frozen=True)
class NextToken:
    """The likeliest next token at one place."""

    token: str
    probability: float


@dataclass(frozen=True)
class LogitLens:
    """Next-token predictions of one text, layer by layer.

    ``layers``: "input" for the signal in front of the first site, then the sites' names. ``predictions``: one row a layer, one
    column a token. ``settled``: for each token the first layer from which on the likeliest next token is the final one.
    """

    text: tuple[str, ...]  # the tokens
    next: tuple[str, ...]  # the token that follows each of them in the text; empty behind the last one
    layers: tuple[str, ...]
    kinds: tuple[str, ...]  # of the layers: "input", "attention", "mlp", or a block's class
    predictions: tuple[tuple[NextToken, ...], ...]
    settled: tuple[int, ...]

    @property
    def mean_depth(self) -> float:
        """Share of the sites that the average token needs until its answer is settled."""
        return sum(self.settled) / len(self.settled) / max(1, len(self.layers) - 1)


@torch.inference_mode()
def logit_lens(model: nn.Module, tokens: Tensor, vocabulary: Vocabulary) -> LogitLens:
    """Read the signal behind each site of ``model`` by what stands behind its last block: final norm and classifier (nostalgebraist 2020).

    ``tokens``: one text, (1, L). The network runs once for each site, with the signal in place of its last block's output.

    Raises ``DeepresError`` for a network without sites, and for more than one text.
    """
    model = unwrapped(model)
    found = sites(model)
    if tokens.ndim != 2 or len(tokens) != 1:
        raise DeepresError(f"the logit lens reads one text of tokens (1, L), not {tuple(tokens.shape)}")
    if not found:
        raise DeepresError(f"{type(model).__name__}: has no residual sites between which a signal could be read")
    with kept_modes(model), uncompiled(model):
        model.eval()
        signals = _signals(model, tokens, found)
        read = [_read(model, tokens, found[-1], signal) for signal in signals]
    probabilities, best = torch.stack([logits[0].float().softmax(-1) for logits in read]).max(-1)  # (layers, L) each
    same = best == best[-1]
    stays = same.flip(0).int().cumprod(0).flip(0)  # 1 where this and all later layers answer as the last one does
    names = [_shown(vocabulary, int(token)) for token in tokens[0]]
    return LogitLens(
        text=tuple(names),
        next=(*names[1:], ""),
        layers=("input", *(site.name for site in found)),
        kinds=("input", *(site.kind for site in found)),
        predictions=tuple(
            tuple(NextToken(_shown(vocabulary, int(token)), float(p)) for token, p in zip(row, sure, strict=True))
            for row, sure in zip(best, probabilities, strict=True)
        ),
        settled=tuple((len(read) - stays.sum(0)).tolist()),
    )


def _shown(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.decode([token]) or vocabulary.names[token]


def _signals(model: nn.Module, tokens: Tensor, found: list[Site]) -> list[Tensor]:
    """The signal (1, L, C) in front of the first site, and behind each."""
    signals: list[Tensor] = []

    def see(one: Observation) -> None:
        if not signals:
            signals.append(one.x.clone())
        signals.append(one.out.clone())

    with ExitStack() as stack:
        for site in found:
            stack.enter_context(site.observe(see))
        logits_of(model, tokens)
    return signals


def _read(model: nn.Module, tokens: Tensor, last: Site, signal: Tensor) -> Tensor:
    """The network's logits (1, L, K) with ``signal`` as the output of its last block."""

    def exchange(_: nn.Module, __: Any, out: Any) -> Any:
        return with_signal(out, signal)

    handle = last.block.register_forward_hook(exchange)
    try:
        return logits_of(model, tokens)
    finally:
        handle.remove()
