"""Text from a language model with less depth: by self-speculative decoding, or with depth by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from deepres.adapters import device_of
from deepres.errors import DeepresError
from deepres.evaluation.generation import text_of
from deepres.evaluation.sampling import Sampling
from deepres.ghosting.options import DecodingOptions
from deepres.ghosting.speculation import Speculation, draft_blocks, speculate
from deepres.ghosting.token_depth import DepthCounts, confidence_for, generate_by_depth
from deepres.models.language import LanguageModel, open_language_model
from deepres.nn.generate import generate_tokens
from deepres.nn.transformer import Transformer

SAMPLES = 4  # texts of the network's own, on which the draft's blocks or the confidence are chosen


def generate_faster(
    model: LanguageModel | nn.Module | str | Path,
    prompt: str = "",
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    decoding: DecodingOptions = DecodingOptions(speculate=4),  # noqa: B008 (frozen)
    *,
    weights: str | Path | None = None,
    counts: Speculation | DepthCounts | None = None,
) -> Iterator[str]:
    """Continue ``prompt`` piece by piece, as ``generate`` does, with fewer passes through blocks.

    The blocks that draft, or the confidence from which a token is answered early, are chosen on texts that the network itself writes
    behind the prompt. ``counts`` counts what was saved.

    Raises ``DeepresError`` as ``generate`` does, for both ways at once or none, and for numbers out of range.
    """
    opened = model if isinstance(model, LanguageModel) else open_language_model(model, weights=weights)
    network, tokens = opened.model, opened.prompt(prompt).to(device_of(opened.model))
    _check(network, decoding)
    generator = sampling.generator(tokens.device)
    samples = _own_texts(network, tokens)
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "generator": generator}
    if decoding.speculate is not None:
        blocks = draft_blocks(network, samples, decoding.speculate)
        seen = counts if isinstance(counts, Speculation) else None
        drawn: Iterator[int] = speculate(
            network,
            tokens,
            sampling.max_tokens,
            blocks,
            ahead=decoding.ahead,
            counts=seen,
            **options,
        )
    else:
        assert decoding.depth is not None
        exits = _exits(network)
        confidence = confidence_for(network, samples, exits, decoding.depth)
        by_depth = counts if isinstance(counts, DepthCounts) else None
        drawn = map(
            int,
            generate_by_depth(
                network,
                tokens,
                sampling.max_tokens,
                exits=exits,
                confidence=confidence,
                counts=by_depth,
                **options,
            ),
        )
    return text_of(drawn, opened.vocabulary, sampling.stop)


def _check(model: Transformer, decoding: DecodingOptions) -> None:
    if (decoding.speculate is None) == (decoding.depth is None):
        raise DeepresError("give either --speculate, a number of blocks that draft, or --depth, a share of the blocks")
    if decoding.speculate is not None and not 1 <= decoding.speculate < model.config.depth:
        raise DeepresError(
            f"--speculate {decoding.speculate}: the draft has 1 to {model.config.depth - 1} of the network's {model.config.depth} blocks"
        )
    if decoding.ahead < 1:
        raise DeepresError(f"--ahead is the number of tokens drafted at a time and at least 1, not {decoding.ahead}")
    if decoding.depth is not None and not 0 < decoding.depth <= 1:
        raise DeepresError(f"--depth {decoding.depth:g}: give a share of the blocks, above 0 and at most 1")
    if decoding.depth is not None and decoding.depth < 1 and not _exits(model):
        raise DeepresError(
            f"--depth {decoding.depth:g}: the network has {model.config.depth} blocks, too few for an early answer; leave it out"
        )


def _exits(model: Transformer) -> range:
    """Numbers of blocks behind which a token may be answered, about a quarter of the depth apart; none in a network of one layer."""
    step = max(2, model.config.depth // 4)
    return range(step, model.config.depth, step)


def _own_texts(model: Transformer, prompt: Tensor) -> Tensor:
    """``SAMPLES`` texts (N, L) that the network writes behind ``prompt``, up to its context and 64 tokens, always the same ones."""
    room = min(64, model.config.context) - 1
    start = prompt[:, -max(1, room // 4) :].expand(SAMPLES, -1)
    generator = torch.Generator(prompt.device).manual_seed(0)
    drawn = list(generate_tokens(model, start, room - start.shape[1] + 1, generator=generator))
    return torch.cat((start, torch.stack(drawn, dim=1)), dim=1)
