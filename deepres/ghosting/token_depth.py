"""Depth by token: a language model answers easy tokens early, and its cache of keys and values stays what full depth makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepres.adapters import device_of
from deepres.errors import DeepresError
from deepres.nn.attention import KeyValues, cached, positions_from
from deepres.nn.generate import check_prompt, draw, sampling_distribution
from deepres.nn.transformer import Transformer

ALWAYS = 2.0  # a confidence that no token reaches: full depth


@dataclass
class DepthCounts:
    """Counts of a run of ``generate_by_depth``."""

    tokens: int = 0
    exits: int = 0  # tokens that were answered early
    passes: int = 0  # through a block, whatever the number of tokens in it
    full: int = 0  # such passes at full depth

    @property
    def depth(self) -> float:
        """Share of the passes through blocks that were made; 1 at full depth."""
        return self.passes / self.full if self.full else 1.0


class TokenSegments:
    """The model in parts between exits. What a token has not passed yet waits in front of the part, for the next one that does.

    A token that leaves early has no keys and values behind its exit. Its signal is kept there. The next token that goes deeper takes
    it along, so that every later part computes the tokens that it has missed, in one pass, before anything attends to them. The cache is
    therefore the full model's, and a token at full depth gets the full model's answer.
    """

    def __init__(self, model: Transformer, exits: Sequence[int]) -> None:
        bounds = [0, *exits, model.config.depth]
        if bounds != sorted(set(bounds)):
            raise DeepresError(f"exits lie behind blocks, 1 to {model.config.depth - 1} in rising order, not {list(exits)}")
        self.model = model
        self.parts = [model.blocks[a:b] for a, b in pairwise(bounds)]
        self.caches: list[KeyValues] = []
        self.pending: list[Tensor | None] = []
        self.length = 0

    def clear(self) -> None:
        self.caches = self.caches or self.model.empty_cache(1)
        for one in self.caches:
            one.truncate(0)
        self.pending, self.length = [None] * len(self.parts), 0

    def next_logits(self, tokens: Tensor, confidence: float, counts: DepthCounts) -> Tensor:
        """The logits (1, K) behind ``tokens`` (1, L), from the first exit whose answer is confident enough."""
        model = self.model
        x = model.embed(tokens)
        if model.positions is not None:
            x = x + model.positions[positions_from(self.length, tokens.shape[1], x.device)]
        self.length += tokens.shape[1]
        x = model.drop(x)
        counts.tokens += 1
        counts.full += model.config.depth
        with cached(model, self.caches):
            for i, part in enumerate(self.parts):
                waiting, self.pending[i] = self.pending[i], None
                x = part(x if waiting is None else torch.cat((waiting, x), dim=1))
                counts.passes += len(part)
                if i == len(self.parts) - 1:
                    break
                if confidence <= 1:  # else nothing is computed that the model itself would not
                    logits: Tensor = model.head(model.norm(x[:, -1]))
                    if float(logits.float().softmax(-1).max()) >= confidence:
                        earlier = self.pending[i + 1]
                        self.pending[i + 1] = x if earlier is None else torch.cat((earlier, x), dim=1)
                        counts.exits += 1
                        return logits
        final: Tensor = model.head(model.norm(x))[:, -1]
        return final


@torch.inference_mode()
def generate_by_depth(
    model: Transformer,
    prompt: Tensor,
    count: int,
    *,
    exits: Sequence[int],
    confidence: float,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    counts: DepthCounts | None = None,
) -> Iterator[Tensor]:
    """Yield up to ``count`` next tokens (1,) behind ``prompt`` (1, L), each from the first exit that is confident of it.

    ``exits``: numbers of blocks behind which a token may be answered, by the model's own norm and classifier (the logit lens).
    ``confidence``: the probability of the likeliest token from which an exit answers; above 1, such as ``ALWAYS``, nothing leaves early
    and the tokens are those of ``generate_tokens`` to the bit. The prompt takes the full depth.

    A token that left early is computed further by the next one that goes deeper, in the same pass. So early exits save passes, not
    operations, which is what counts where a pass is bound by reading the weights.

    Raises ``DeepresError`` as ``generate_tokens`` does, for exits that are none, and for more than one sequence.
    """
    check_prompt(model, prompt)
    if len(prompt) != 1:
        raise DeepresError("depth by token works on one sequence at a time")
    if not confidence > 0:
        raise DeepresError(f"confidence is a probability above 0, or above 1 for full depth, not {confidence:g}")
    segments, counts = TokenSegments(model, exits), counts or DepthCounts()
    segments.clear()
    context, seen, new = model.config.context, prompt, prompt
    for _ in range(count):
        if seen.shape[1] > context:
            seen = new = seen[:, -max(1, context // 2) :]
            segments.clear()
        enough = confidence if new.shape[1] == 1 else ALWAYS
        logits = segments.next_logits(new, enough, counts)
        new = draw(sampling_distribution(logits, temperature, top_p), generator)
        seen = torch.cat((seen, new), dim=1)
        yield new[:, 0]


@torch.inference_mode()
def confidence_for(model: Transformer, tokens: Tensor, exits: Sequence[int], budget: float) -> float:
    """The lowest confidence at which ``tokens`` (N, L) would on average pass at least the share ``budget`` of the blocks.

    1 gives ``ALWAYS``, with which the model is itself to the bit.

    Raises ``DeepresError`` for a budget outside of (0, 1].
    """
    if not 0 < budget <= 1:
        raise DeepresError(f"a budget is a share of the blocks, above 0 and at most 1, not {budget:g}")
    if budget == 1:
        return ALWAYS
    sure = _confidences(model, tokens.to(device_of(model)), exits)
    depth = torch.tensor([*exits, model.config.depth], dtype=torch.float64) / model.config.depth
    for confidence in sure.flatten().unique().tolist():
        first = (torch.cat((sure, torch.full_like(sure[:1], ALWAYS))) >= confidence).int().argmax(0)
        if float(depth[first].mean()) >= budget:
            return float(confidence)
    return ALWAYS


def _confidences(model: Transformer, tokens: Tensor, exits: Sequence[int]) -> Tensor:
    """The likeliest next token's probability at each exit, (exits, tokens)."""
    x = model.embed(tokens)
    if model.positions is not None:
        x = x + model.positions[: tokens.shape[1]]
    found = []
    for number, block in enumerate(model.blocks, 1):
        x = block(x)
        if number in exits:
            found.append(model.head(model.norm(x)).float().softmax(-1).amax(-1).flatten().cpu())
    return torch.stack(found)
