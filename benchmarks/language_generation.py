"""Text generation with a cache beside Hugging Face's ``generate`` on the same weights, and self-speculative decoding beside the whole.

    python -m benchmarks.language_generation generate                       # a fresh gpt-tiny; weights do not change the time
    python -m benchmarks.language_generation generate --net gpt2
    python -m benchmarks.language_generation speculate --model runs/language-shrink/whole-0 --data tinyshakespeare.txt

Greedy decoding in float32. Each candidate of ``generate`` has a process of its own, and the candidates take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.common import Remote, in_groups, record, summary
from deepres.adapters.transformer_weights import to_hugging_face
from deepres.data import Resident, open_data
from deepres.ghosting.speculation import draft_blocks, time_speculation
from deepres.models import open_language_model
from deepres.nn.generate import generate_tokens
from deepres.nn.transformer import Transformer
from deepres.nn.transformer_zoo import transformer

VOCABULARY, CONTEXT, PROMPT, NEW = 256, 256, 16, 200  # tokens
ROWS = (1, 8)  # sequences at a time
DRAFTS, AHEAD = (2, 4, 8, 12), ((2, 0.0), (4, 0.0), (4, 0.5), (8, 0.6))  # blocks; tokens drafted at a time, and `sure`: tried


def network(net: str) -> Transformer:
    torch.manual_seed(0)
    options = {"vocabulary": VOCABULARY, "context": CONTEXT} if net == "gpt-tiny" else {}
    return transformer(net, **options).eval()


def hugging_face(model: Transformer) -> Any:
    """Their GPT-2 with the same weights, which never ends a text by itself."""
    shape = model.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.context,
            n_embd=shape.width,
            n_layer=shape.depth // 2,
            n_head=shape.heads,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    return to_hugging_face(model, theirs).eval()


def prompt(model: Transformer, rows: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocabulary, (rows, PROMPT), generator=torch.Generator().manual_seed(1))


def ours(net: str, rows: int) -> tuple[Callable[[], object], str]:
    model = network(net)
    given = prompt(model, rows)

    def call() -> None:
        assert sum(1 for _ in generate_tokens(model, given, NEW, temperature=0)) == NEW

    return call, "deepres"


def peer(net: str, rows: int, static: bool) -> tuple[Callable[[], object], str]:
    """Hugging Face's ``generate``, with the cache that grows, its usual one, or with one that is allocated once."""
    model = network(net)
    given, theirs = prompt(model, rows), hugging_face(model)
    options = {"cache_implementation": "static"} if static else {}

    def call() -> None:
        found = theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options
        )
        assert found.shape[1] == PROMPT + NEW

    return call, "Hugging Face's generate" + (", static cache" if static else "")


def same_tokens(net: str) -> bool:
    """Whether both write the same tokens behind one prompt."""
    model = network(net)
    given = prompt(model, 2)
    mine = torch.stack(list(generate_tokens(model, given, 20, temperature=0)), dim=1)
    found = hugging_face(model).generate(given, attention_mask=torch.ones_like(given), max_new_tokens=20, do_sample=False)
    return bool(torch.equal(mine, found[:, PROMPT:]))


def generation(net: str, groups: int, turns: int) -> None:
    """Tokens a second for each number of sequences at a time."""
    found = {}
    for rows in ROWS:

        def candidates(rows: int = rows) -> list[Remote]:
            return [Remote(ours, net, rows), Remote(peer, net, rows, False), Remote(peer, net, rows, True)]

        times = in_groups(candidates, groups, turns, warm=1)
        best = min((name for name in times if name != "deepres"), key=lambda name: statistics.median(times[name]))
        ways = summary(times, rows * NEW, best, "tokens")
        found[f"batch {rows}"] = {"best_peer": best, **ways}
    what = f"{net}, {PROMPT} tokens of prompt, {NEW} new ones, greedy, float32"
    name = "language-generation" + ("" if net == "gpt-tiny" else f"-{net}")
    record(name, {"what": what, "processes": groups, "same_tokens": same_tokens(net), **found})


def speculation(reference: str, path: str, turns: int) -> None:
    """The draft is chosen on one half of some validation pieces and timed on prompts from the other."""
    language = open_language_model(reference)
    model, data = language.model, open_data(path, size=language.context, tokens=language.vocabulary)
    pieces = data.val.take(torch.arange(0, len(data.val), max(1, len(data.val) // 64)))
    assert isinstance(pieces, Resident)
    tokens = pieces.pixels.long()
    choosing, prompts = tokens[::2][:24], [row[None, :PROMPT] for row in tokens[1::2][:4]]
    count = language.context - PROMPT
    tried: dict[str, dict[str, Any]] = {}
    for size in DRAFTS:
        blocks = draft_blocks(model, choosing, size)
        for ahead, sure in AHEAD:
            how = {"ahead": ahead, "sure": sure}
            found = time_speculation(model, prompts, count, blocks, ahead=ahead, sure=sure, turns=3)
            tried[f"{size} blocks, {ahead} ahead, sure {sure:g}"] = {"blocks": blocks, **how, **dataclasses.asdict(found)}
    best = max(tried, key=lambda name: tried[name]["ratio"])
    blocks, ahead, sure = (tried[best][name] for name in ("blocks", "ahead", "sure"))
    again = time_speculation(model, prompts, count, blocks, ahead=ahead, sure=sure, turns=turns)
    what = f"{model.config.depth} blocks, {model.config.width} wide; {len(prompts)} prompts of {PROMPT} tokens, {count} new ones, greedy"
    record(
        "language-speculation",
        {"what": what, "tried": tried, "best": best, "n": turns, "measured_again": dataclasses.asdict(again)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["generate", "speculate"])
    parser.add_argument("--net", default="gpt-tiny")
    parser.add_argument("--model", help="a trained run, for speculate")
    parser.add_argument("--data", help="its text, for speculate")
    parser.add_argument("--groups", type=int, default=3, help="of processes")
    parser.add_argument("--turns", type=int, default=9)
    given = parser.parse_args()
    if given.part == "generate":
        generation(given.net, given.groups, given.turns)
    else:
        if given.model is None or given.data is None:
            parser.error("speculate needs --model and --data")
        speculation(given.model, given.data, given.turns)


if __name__ == "__main__":
    main()
