"""Self-speculative decoding: a few of a language model's own blocks draft tokens, and the whole model verifies them in one pass.

Leviathan et al. 2023 and Chen et al. 2023 show that the verified tokens have exactly the whole model's distribution; Zhang et al. 2024
draft with the model's own layers.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepres.adapters import device_of, sites
from deepres.errors import DeepresError
from deepres.evaluation.timing import alternate
from deepres.nn.generate import check_prompt, draw, generate_tokens, sampling_distribution
from deepres.nn.transformer import Transformer


def with_blocks(model: Transformer, kept: Sequence[int]) -> Transformer:
    """The network of ``model``'s blocks with the indices ``kept``, in their order, which shares all weights with it.

    It computes what ``model`` computes while the other blocks' sites are bypassed.

    Raises ``DeepresError`` for indices that are no blocks, and where no attention is kept.
    """
    chosen = sorted(set(kept))
    if not chosen or chosen[0] < 0 or chosen[-1] >= model.config.depth:
        raise DeepresError(f"blocks are numbered from 0 to {model.config.depth - 1}, and {list(kept)} were asked for")
    names = tuple(model.config.blocks[i] for i in chosen)
    if "attention" not in names:
        raise DeepresError("a draft needs at least one attention block, or it sees one token only")
    made = copy.copy(model)
    made._modules = {**model._modules, "blocks": nn.Sequential(*(model.blocks[i] for i in chosen))}
    made.config = dataclasses.replace(model.config, blocks=names)
    return made


@torch.inference_mode()
def draft_blocks(model: Transformer, tokens: Tensor, count: int) -> list[int]:
    """The ``count`` blocks to draft with, found on ``tokens`` (N, L).

    One block after the other is bypassed: the one without which the fewest of the next-token answers change.
    """
    if not 1 <= count <= model.config.depth:
        raise DeepresError(f"a draft has 1 to {model.config.depth} blocks, not {count}")
    found, kept = sites(model), [*range(model.config.depth)]
    whole = model(tokens).argmax(-1)
    attentions = sum(part == "attention" for part in model.config.blocks)
    while len(kept) > count:
        same: dict[int, float] = {}
        for i in kept:
            if model.config.blocks[i] == "attention" and attentions == 1:
                continue
            with found[i].bypass():  # of the blocks that are left
                same[i] = float((with_blocks(model, kept)(tokens).argmax(-1) == whole).float().mean())
        worst = max(same, key=lambda i: (same[i], -i))
        attentions -= model.config.blocks[worst] == "attention"
        kept.remove(worst)
    return kept


def verify_draft(drafted: Sequence[int], guesses: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> list[int]:
    """Tokens to keep, the last of which is drawn from the whole model: between 1 and ``len(drafted) + 1`` of them.

    ``drafted``: K tokens, drawn from the rows of ``guesses`` (K, V). ``truth``: the whole model's probabilities at the same places and
    at one more, (K + 1, V). Token i is kept with probability min(1, truth / guess); the first that is not is drawn anew from the
    positive part of truth - guess (Leviathan et al. 2023, algorithm 1). Together they have exactly the distribution ``truth``.
    """
    kept: list[int] = []
    for i, token in enumerate(drafted):
        p, q = float(truth[i, token]), float(guesses[i, token])
        if p < q and float(torch.rand((), generator=generator, device=truth.device)) * q >= p:
            rest = (truth[i] - guesses[i]).clamp(min=0)
            return [*kept, int(draw((rest / rest.sum())[None], generator))]
        kept.append(token)
    return [*kept, int(draw(truth[len(drafted)][None], generator))]


@dataclass
class Speculation:
    """Counts of a run of ``speculate``."""

    passes: int = 0  # of the whole model, the prompt's included
    drafted: int = 0  # tokens
    accepted: int = 0  # of them

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the whole model accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@torch.inference_mode()
def speculate(
    model: Transformer,
    prompt: Tensor,
    count: int,
    blocks: Sequence[int],
    *,
    ahead: int = 4,
    sure: float = 0.0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    counts: Speculation | None = None,
) -> Iterator[int]:
    """Yield up to ``count`` next tokens behind ``prompt`` (1, L), of which the blocks ``blocks`` draft up to ``ahead`` at a time.

    The tokens have the distribution of ``generate_tokens``, and at temperature 0 are the same tokens: each is decided by the whole model.
    A pass over several tokens rounds differently from passes over one, so that two logits that agree to rounding may change places.
    ``sure``: the draft ends behind a token where its likeliest one had less than this probability, since what follows is then likely in
    vain. The rule looks at the draft alone, so it does not change the distribution.

    Draft and whole model have a cache of keys and values each. Both are cut back to the tokens that were accepted.

    Raises ``DeepresError`` as ``generate_tokens`` does, and for more than one sequence.
    """
    check_prompt(model, prompt)
    if len(prompt) != 1 or ahead < 1:
        raise DeepresError("speculation drafts one token or more ahead, of one sequence at a time")
    draft, counts = with_blocks(model, blocks), counts or Speculation()
    whole_cache, draft_cache = model.empty_cache(1), draft.empty_cache(1)
    context, seen, made = model.config.context, prompt, 0
    while made < count:
        if seen.shape[1] > context:  # as in generate_tokens
            seen = seen[:, -max(1, context // 2) :]
            for one in (*whole_cache, *draft_cache):
                one.truncate(0)
        before = seen.shape[1]
        parts, guesses = [seen], []
        new = seen[:, draft_cache[0].length :]
        for _ in range(min(ahead, count - made - 1, context - before)):
            logits = draft(new, draft_cache)[:, -1]
            if temperature == 0:
                new = logits.argmax(-1, keepdim=True)
            else:
                guesses.append(sampling_distribution(logits, temperature, top_p))
                new = draw(guesses[-1], generator)
            parts.append(new)
            if sure and float(logits.float().softmax(-1).max()) < sure:
                break
        tried = torch.cat(parts, dim=1)
        drafted = tried[0, before:].tolist()
        logits = model(tried[:, whole_cache[0].length :], whole_cache)[0, -1 - len(drafted) :]
        if temperature == 0:
            tokens = _agreed(drafted, logits.argmax(-1).tolist())
        else:
            truth = sampling_distribution(logits, temperature, top_p)
            tokens = verify_draft(drafted, torch.cat(guesses) if guesses else truth[:0], truth, generator)
        seen = torch.cat((seen, torch.tensor([tokens], device=seen.device)), dim=1)
        for one in (*whole_cache, *draft_cache):
            one.truncate(before + len(tokens) - 1)
        counts.passes += 1
        counts.drafted += len(drafted)
        counts.accepted += len(tokens) - 1
        made += len(tokens)
        yield from tokens


def _agreed(drafted: list[int], best: list[int]) -> list[int]:
    """The drafted tokens up to the first that is not the whole model's, and the whole model's own there: ``verify_draft``, greedy."""
    kept = next((i for i, token in enumerate(drafted) if token != best[i]), len(drafted))
    return best[: kept + 1]


@dataclass(frozen=True)
class SpeculationTiming:
    """Greedy generation by the whole model and with speculation, in alternating turns on the same prompts."""

    tokens_per_second: float  # median over the turns, with speculation
    plain_tokens_per_second: float
    ratio: float  # median over the turns; above 1 speculation is faster
    acceptance: float  # share of the drafted tokens
    tokens_per_pass: float  # of the whole model


def time_speculation(
    model: Transformer,
    prompts: Sequence[Tensor],
    count: int,
    blocks: Sequence[int],
    *,
    ahead: int = 4,
    sure: float = 0.0,
    turns: int = 5,
) -> SpeculationTiming:
    """Measure what speculation gains on ``prompts``, each (1, L), of which ``count`` tokens are generated."""
    counts = Speculation()

    def plain() -> None:
        for prompt in prompts:
            for _ in generate_tokens(model, prompt, count, temperature=0):
                pass

    def speculative() -> None:
        for prompt in prompts:
            for _ in speculate(model, prompt, count, blocks, ahead=ahead, sure=sure, temperature=0, counts=counts):
                pass

    times = alternate({"plain": plain, "speculative": speculative}, device_of(model), turns=turns, warmup=1)
    total = count * len(prompts)
    return SpeculationTiming(
        tokens_per_second=total / statistics.median(times["speculative"]),
        plain_tokens_per_second=total / statistics.median(times["plain"]),
        ratio=statistics.median(a / b for a, b in zip(times["plain"], times["speculative"], strict=True)),
        acceptance=counts.acceptance,
        tokens_per_pass=(counts.accepted + counts.passes) / counts.passes,
    )
