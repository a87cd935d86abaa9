"""Text from a decoder, token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deepres.errors import DeepresError
from deepres.nn.transformer import Transformer


def sampling_distribution(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Probabilities to draw the next token from, (N, K) -> (N, K).

    ``temperature`` 0 puts everything on the likeliest token. ``top_p`` keeps the smallest set of likeliest tokens that holds this much
    probability, at least one (nucleus sampling, Holtzman et al. 2020).
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p >= 1:
        return probabilities
    ordered, index = probabilities.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0  # what stands before a token decides, so the first always stays
    kept = torch.zeros_like(probabilities).scatter_(-1, index, ordered)
    return kept / kept.sum(-1, keepdim=True)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield up to ``count`` next tokens (N,) behind ``prompt`` (N, L), one position at a time.

    When the context is full, its second half becomes the new prompt, so generation can go on for as long as is asked; positions then
    start anew, as in any decoder of a bounded context. The model runs in the mode that it is in; call ``eval()`` first.

    Raises ``DeepresError`` for an empty prompt, a prompt longer than the context, and tokens that the vocabulary does not have.
    """
    context = model.config.context
    if not model.config.vocabulary:
        raise DeepresError("an encoder of images generates no text; generate needs a decoder")
    if temperature < 0 or not 0 < top_p <= 1:
        raise DeepresError(f"temperature is 0 or more and top_p above 0 and at most 1, not {temperature:g} and {top_p:g}")
    if prompt.ndim != 2 or not 1 <= prompt.shape[1] <= context:
        raise DeepresError(f"a prompt is (N, L) tokens, L from 1 to the context of {context}, not {tuple(prompt.shape)}")
    if int(prompt.max()) >= model.config.vocabulary or int(prompt.min()) < 0:
        raise DeepresError(f"a token of the prompt is outside of the vocabulary of {model.config.vocabulary} tokens")
    cache = model.empty_cache(len(prompt))
    tokens, new = prompt, prompt
    for _ in range(count):
        if cache[0].length + new.shape[1] > context:
            new = tokens[:, -max(1, context // 2) :]
            for one in cache:
                one.truncate(0)
        logits = model(new, cache)[:, -1]
        probabilities = sampling_distribution(logits, temperature, top_p)
        new = (
            probabilities.argmax(-1, keepdim=True)
            if temperature == 0
            else torch.multinomial(probabilities, 1, generator=generator)
        )
        tokens = torch.cat((tokens, new), dim=1)[:, -context:]
        yield new[:, 0]
