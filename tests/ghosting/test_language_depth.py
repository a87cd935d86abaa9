"""Generation with less depth: speculation and early exits by token, against the whole model and its exact distribution."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.ghosting.speculation import Speculation, draft_blocks, speculate, time_speculation, verify_draft, with_blocks
from deepres.ghosting.token_depth import ALWAYS, DepthCounts, TokenSegments, confidence_for, generate_by_depth
from deepres.nn.generate import generate_tokens, sampling_distribution
from deepres.nn.transformer import Transformer
from deepres.nn.transformer_zoo import transformer


def small(name: str, **options: object) -> Transformer:
    return transformer(name, **{"depth": 3, "width": 32, "vocabulary": 40, "context": 24, **options}).eval()  # type: ignore[arg-type]


def tokens_of(iterator: object) -> list[int]:
    return [int(token) for token in iterator]  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_draft_computes_what_bypassing_the_other_blocks_does() -> None:
    model = small("llama-tiny")
    tokens = torch.randint(40, (2, 9))
    draft = with_blocks(model, [0, 3, 5])
    sites = deepres.sites(model)
    with sites[1].bypass(), sites[2].bypass(), sites[4].bypass():
        assert torch.equal(draft(tokens), model(tokens))
    assert draft.config.blocks == ("attention", "mlp", "mlp") and draft.blocks[1] is model.blocks[3] and len(model.blocks) == 6
    kept = draft_blocks(model, tokens, 3)
    assert len(kept) == 3 and any(model.config.blocks[i] == "attention" for i in kept)
    for wrong in ([], [6], [1]):
        with pytest.raises(DeepresError):
            with_blocks(model, wrong)


@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
@pytest.mark.parametrize("ahead", [1, 3, 30])
def test_greedy_speculation_gives_the_same_tokens_even_beyond_the_context(name: str, ahead: int) -> None:
    model, prompt = small(name), torch.randint(40, (1, 5))
    plain = tokens_of(generate_tokens(model, prompt, 50, temperature=0))
    for blocks in ([0, 1], range(6)):
        counts = Speculation()
        made = tokens_of(speculate(model, prompt, 50, [*blocks], ahead=ahead, sure=ahead / 100, temperature=0, counts=counts))
        assert made == plain
    assert counts.acceptance == 1.0 and counts.passes < 50  # the whole model as its own draft


@torch.no_grad()
def test_speculation_draws_from_the_exact_distribution() -> None:
    """The joint distribution of three tokens, by a chi-square bound that a right method fails once in ten thousand times."""
    torch.manual_seed(1)
    model, prompt = small("gpt-tiny", depth=2, width=8, heads=1, vocabulary=3, context=8), torch.tensor([[0, 1]])
    for parameter in model.parameters():
        parameter.mul_(4)  # so that draft and model differ
    words = list(itertools.product(range(3), repeat=3))
    whole = torch.cat((prompt.expand(27, -1), torch.tensor(words)), dim=1)
    shares = sampling_distribution(model(whole)[:, 1:4].flatten(0, 1), 0.9).view(27, 3, 3)
    expected = torch.stack([shares[i, range(3), list(word)].prod() for i, word in enumerate(words)])
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    generator, counts = torch.Generator().manual_seed(0), Speculation()
    seen = [0] * 27
    for _ in range(1200):
        made = tokens_of(
            speculate(model, prompt, 3, [0], ahead=2, sure=0.5, temperature=0.9, generator=generator, counts=counts)
        )
        seen[words.index(tuple(made))] += 1  # type: ignore[arg-type]
    common = [i for i in range(27) if 1200 * float(expected[i]) >= 5]
    rest = [1200 - sum(seen[i] for i in common), 1200 * (1 - sum(float(expected[i]) for i in common))]
    pairs = [(seen[i], 1200 * float(expected[i])) for i in common] + ([tuple(rest)] if rest[1] >= 5 else [])
    statistic = sum((have - want) ** 2 / want for have, want in pairs)
    assert statistic < stats.chi2.ppf(1 - 1e-4, len(pairs) - 1) and 0.05 < counts.acceptance < 0.95
    assert counts.passes < counts.drafted < 2 * counts.passes  # the rule ended some drafts


def test_verification_keeps_the_distribution_whatever_the_draft() -> None:
    guesses, truth = torch.tensor([[0.7, 0.2, 0.1, 0.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    drafts = torch.multinomial(guesses.expand(6000, -1), 1, generator=generator).flatten().tolist()
    first = torch.tensor([verify_draft([token], guesses, truth, generator)[0] for token in drafts])
    found = torch.bincount(first, minlength=4)
    assert stats.chisquare(found.numpy(), 6000 * truth[0].double().numpy() / float(truth[0].double().sum())).pvalue > 1e-4
    assert verify_draft([1], torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == [1, 0]  # kept, and one more
    assert verify_draft([0], torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == [1]


def test_speculation_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks once for each block that runs, since a real one may tell of any order."""
    model, ticks = small("gpt-tiny"), [0]

    def tick(*_: object) -> None:
        ticks[0] += 1

    for block in model.blocks:
        block.register_forward_hook(tick)
    prompt = torch.randint(40, (1, 4))
    took = []
    for made in (
        generate_tokens(model, prompt, 12, temperature=0),
        speculate(model, prompt, 12, [0, 1], ahead=4, temperature=0, counts=(counts := Speculation())),
    ):
        before = ticks[0]
        tokens_of(made)
        took.append(ticks[0] - before)
    monkeypatch.setattr(time, "perf_counter", lambda: float(ticks[0]))
    found = time_speculation(model, [prompt], 12, [0, 1], turns=3)
    assert (found.plain_tokens_per_second, found.tokens_per_second) == (12 / took[0], 12 / took[1])
    assert found.ratio == pytest.approx(took[0] / took[1]) and found.acceptance == counts.acceptance
    assert found.tokens_per_pass == pytest.approx((counts.accepted + counts.passes) / counts.passes)
    with pytest.raises(DeepresError, match="one sequence"):
        next(speculate(model, torch.zeros(2, 3).long(), 4, [0]))


@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_the_whole_budget_is_the_model_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = small(name), torch.randint(40, (1, 5))
    logits: dict[str, list[Tensor]] = {"plain": [], "depth": []}
    which = "plain"
    hook = model.head.register_forward_hook(lambda _, __, out: logits[which].append(out[:, -1].clone()))
    plain = tokens_of(generate_tokens(model, prompt, 40, generator=torch.Generator().manual_seed(0)))
    which = "depth"
    sure = confidence_for(model, prompt, [2, 4], 1.0)
    counts, generator = DepthCounts(), torch.Generator().manual_seed(0)
    made = tokens_of(generate_by_depth(model, prompt, 40, exits=[2, 4], confidence=sure, generator=generator, counts=counts))
    hook.remove()
    assert made == plain and counts.depth == 1.0 and counts.exits == 0 and sure == ALWAYS
    assert all(torch.equal(a, b) for a, b in zip(logits["plain"], logits["depth"], strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt-tiny", "llama-tiny"])
def test_a_token_that_left_early_does_not_break_later_attention(name: str) -> None:
    """Wherever tokens left, a token at full depth gets the logits of the whole model's pass over the same tokens."""
    model, tokens = small(name), torch.randint(40, (1, 14))
    whole, counts = model(tokens)[0], DepthCounts()
    segments = TokenSegments(model, [2, 4])
    segments.clear()
    segments.next_logits(tokens[:, :3], ALWAYS, counts)
    for i in range(3, 14):
        leave = i % 4 != 2  # three of four leave at the first exit
        found = segments.next_logits(tokens[:, i : i + 1], 1e-9 if leave else ALWAYS, counts)
        if leave:
            x = model.blocks[:2](model.embed(tokens[:, : i + 1]) + (0 if model.positions is None else model.positions[: i + 1]))
            torch.testing.assert_close(found[0], model.head(model.norm(x))[0, -1], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(found[0], whole[i], rtol=1e-4, atol=1e-5)
    assert counts.exits == 9 and counts.depth < 0.6


def test_a_budget_chooses_the_confidence() -> None:
    model, tokens = small("llama-tiny"), torch.randint(40, (4, 20))
    used = []
    for budget in (0.4, 0.7, 1.0):
        counts = DepthCounts()
        sure = confidence_for(model, tokens, [2, 4], budget)
        made = tokens_of(
            generate_by_depth(model, tokens[:1, :5], 18, exits=[2, 4], confidence=sure, temperature=0, counts=counts)
        )
        used.append(counts.depth)
        assert len(made) == 18
    assert used[0] <= used[1] <= used[2] == 1.0
    for wrong in (0.0, 1.1):
        with pytest.raises(DeepresError, match="budget"):
            confidence_for(model, tokens, [2, 4], wrong)
    with pytest.raises(DeepresError, match="rising order"):
        next(generate_by_depth(model, tokens[:1, :5], 4, exits=[4, 2], confidence=0.5))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small language model with its tokens, on disk."""
    path = tmp_path_factory.mktemp("reader") / "net.safetensors"
    torch.manual_seed(0)
    model = deepres.create("gpt-tiny", depth=4, width=16, heads=2, vocabulary=6, context=24)
    tokens = {"size": 24, "channels": 0, "tokens": {"kind": "characters", "names": list("abcde\n")}}
    deepres.save(model, path, classes=list("abcde\n"), prepare=tokens)
    return str(path)


def test_the_command_speculates_with_the_same_text_and_takes_less_depth(
    reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for more in ([], ["--speculate", "3"], ["--speculate", "2", "--ahead", "2"], ["--depth", "1"]):
        assert main(["generate", reader, "--prompt", "abc", "--temperature", "0", "--max-tokens", "40", *more]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1
    assert main(["generate", reader, "--prompt", "abc", "--depth", "0.5", "--max-tokens", "40", "--seed", "3"]) == 0
    assert len(capsys.readouterr().out) == len("abc") + 40 + 1


def test_a_network_of_one_layer_has_no_early_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=3, context=8)
    tokens = {"size": 8, "channels": 0, "tokens": {"kind": "characters", "names": list("ab\n")}}
    deepres.save(model, tmp_path / "net.safetensors", classes=list("ab\n"), prepare=tokens)
    command = ["generate", str(tmp_path / "net.safetensors"), "--max-tokens", "4", "--depth"]
    assert main([*command, "0.5"]) == 2
    assert "--depth 0.5: the network has 2 blocks, too few for an early answer" in capsys.readouterr().err
    assert main([*command, "1"]) == 0


@pytest.mark.gpu
def test_drafts_are_verified_on_the_model_s_device() -> None:
    model, generator = small("gpt-tiny").cuda(), torch.Generator("cuda").manual_seed(0)
    assert len(tokens_of(speculate(model, torch.randint(40, (1, 5)).cuda(), 12, [0, 1], ahead=3, generator=generator))) == 12


def test_wrong_ways_to_generate_get_a_sentence(reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, says in (
        (["--speculate", "8"], "the draft has 1 to 7 of the network's 8 blocks"),
        (["--speculate", "2", "--depth", "0.5"], "either --speculate"),
        (["--speculate", "2", "--ahead", "0"], "--ahead is the number of tokens"),
        (["--depth", "1.5"], "--depth 1.5: give a share"),
    ):
        assert main(["generate", reader, *options]) == 2
        assert says in capsys.readouterr().err
