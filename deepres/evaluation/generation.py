"""Text from a trained language model, as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from deepres.data import Vocabulary
from deepres.evaluation.sampling import Sampling, StopWords
from deepres.models.language import LanguageModel, open_language_model
from deepres.nn.generate import generate_tokens


def generate(
    model: LanguageModel | nn.Module | str | Path,
    prompt: str = "",
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    *,
    weights: str | Path | None = None,
    cache: bool = True,
    **changes: Any,
) -> Iterator[str]:
    """Continue ``prompt``, piece by piece, as each is drawn: ``"".join(deepres.generate("runs/play", "To be", seed=1))``.

    ``model``, ``weights``: as in ``open_model``. ``changes``: fields of ``Sampling``: ``max_tokens``, ``temperature``, ``top_p``,
    ``stop`` (a word or several) and ``seed``. The text ends in front of a stop word, behind ``max_tokens`` tokens, or where the model
    ends its document. ``cache``: whether keys and values are kept from token to token; the text is the same either way, up to
    rounding.

    Raises ``DeepresError`` for a network that is no language model and for a prompt that it cannot read.
    """
    opened = model if isinstance(model, LanguageModel) else open_language_model(model, weights=weights)
    sampling = replace(sampling, **changes)
    tokens = opened.prompt(prompt)
    device = next(opened.model.parameters()).device
    generator = sampling.generator(device)
    drawn = generate_tokens(
        opened.model,
        tokens.to(device),
        sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        generator=generator,
        cache=cache,
    )
    return text_of((int(token) for token in drawn), opened.vocabulary, sampling.stop)


def text_of(tokens: Iterable[int], vocabulary: Vocabulary, stop: tuple[str, ...] = ()) -> Iterator[str]:
    """The text of ``tokens`` as it becomes complete, up to a stop word or to the token that ends a document."""
    stream, words = vocabulary.stream(), StopWords(stop)
    for token in tokens:
        if token == vocabulary.end:
            break
        if text := words.push(stream.push(token)):
            yield text
        if words.found:
            return
    if text := words.push(stream.close()) + words.close():
        yield text
