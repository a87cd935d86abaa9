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
def generate_tokens(
    model: Transformer,
    prompt: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    cache: bool = True,
) -> Iterator[Tensor]:
    """Yield up to ``count`` next tokens (N,) behind ``prompt`` (N, L), one position at a time.

    When the context is full, its second half becomes the new prompt, so generation can go on for as long as is asked; positions then
    start anew, as in any decoder of a bounded context. The model runs in the mode that it is in; call ``eval()`` first. Without
    ``cache`` each token is computed from all before it: slower, and equal up to rounding.

    Raises ``DeepresError`` for an empty prompt, a prompt longer than the context, and tokens that the vocabulary does not have.
    """
    check_prompt(model, prompt)
    if temperature < 0 or not 0 < top_p <= 1:
        raise DeepresError(f"temperature is 0 or more and top_p above 0 and at most 1, not {temperature:g} and {top_p:g}")
    context = model.config.context
    caches = model.empty_cache(len(prompt)) if cache else None
    seen, new = prompt, prompt  # the tokens since positions began, and of them those that are not in the cache
    for _ in range(count):
        if seen.shape[1] > context:
            seen = new = seen[:, -max(1, context // 2) :]
            for one in caches or ():
                one.truncate(0)
        logits = model(new, caches)[:, -1] if caches is not None else model(seen)[:, -1]
        new = draw(sampling_distribution(logits, temperature, top_p), generator)
        seen = torch.cat((seen, new), dim=1)
        yield new[:, 0]


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token (N, 1) from each row of ``probabilities`` (N, K); a row with all of it in one place needs no random number.

    Raises ``DeepresError`` for probabilities that are not finite.
    """
    best, token = probabilities.max(-1, keepdim=True)
    if bool((best == 1).all()):
        return token
    try:
        return torch.multinomial(probabilities, 1, generator=generator)
    except RuntimeError as error:
        if bool(probabilities.isfinite().all()):
            raise
        raise DeepresError(
            "the network's answers are not finite (NaN), so its weights are damaged; use another checkpoint"
        ) from error


def check_prompt(model: Transformer, prompt: Tensor) -> None:
    """Raise ``DeepresError`` where ``prompt`` is not (N, L) tokens of the vocabulary, L from 1 to the context."""
    context = model.config.context
    if not model.config.vocabulary:
        raise DeepresError("an encoder of images generates no text; generation needs a decoder")
    if prompt.ndim != 2 or not 1 <= prompt.shape[1] <= context:
        raise DeepresError(f"a prompt is (N, L) tokens, L from 1 to the context of {context}, not {tuple(prompt.shape)}")
    if int(prompt.max()) >= model.config.vocabulary or int(prompt.min()) < 0:
        raise DeepresError(f"a token of the prompt is outside of the vocabulary of {model.config.vocabulary} tokens")
