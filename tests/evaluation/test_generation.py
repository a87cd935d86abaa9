"""Text from language models: the same with and without a cache, ended where it is asked to, and refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import Characters, train_byte_pairs
from deepres.evaluation.generation import text_of
from deepres.evaluation.sampling import Sampling, StopWords
from deepres.models.language import LanguageModel, open_language_model

LETTERS = "\n abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("language") / "net.safetensors"
    model = deepres.create("llama-tiny", depth=2, width=32, vocabulary=len(LETTERS), context=24)
    prepare = {"size": 24, "channels": 0, "tokens": {"kind": "characters", "names": list(LETTERS)}}
    return deepres.save(model, path, classes=list(LETTERS), prepare=prepare)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "temperature": 0.5, "top_p": 0.8}])
def test_a_cache_changes_no_text_even_beyond_the_context(saved: Path, options: dict[str, float]) -> None:
    opened = open_language_model(saved)
    with_cache, without = (
        "".join(deepres.generate(opened, "to be", max_tokens=60, cache=cache, **options)) for cache in (True, False)
    )
    assert with_cache == without and len(with_cache) == 60
    assert with_cache == "".join(deepres.generate(saved, "to be", Sampling(max_tokens=60), **options))


def test_a_seed_gives_a_text_and_no_seed_another_one(saved: Path) -> None:
    def text(seed: int | None) -> str:
        return "".join(deepres.generate(saved, "to be", seed=seed, max_tokens=40))

    assert text(1) == text(1) != text(2) and text(None) != text(None)


def test_stop_words_end_a_text_however_it_is_cut() -> None:
    for cuts in ([1] * 9, [9], [2, 3, 4], [4, 1, 4]):
        words, out, start = StopWords(("cd", "def")), "", 0
        for cut in cuts:
            out += words.push("abdecxcdx"[start : start + cut])
            start += cut
        assert out + words.close() == "abdecx" and words.found
    for cuts in ([1] * 6, [6], [4, 2], [5, 1]):  # of words that overlap, the one that is complete first counts
        words, out, start = StopWords(("bcde", "cd")), "", 0
        for cut in cuts:
            out += words.push("abcdef"[start : start + cut])
            start += cut
        assert out + words.close() == "ab" and words.found
    words = StopWords(("abc",))
    assert words.push("xab") == "x" and words.push("ab") == "ab" and words.close() == "ab" and not words.found


def test_a_text_ends_at_a_stop_word_and_where_the_document_does() -> None:
    tokens = train_byte_pairs(["a"], 257)

    def numbers() -> Iterator[int]:
        yield from tokens.encode("né 🙂").tolist()
        yield tokens.end
        raise AssertionError("nothing is computed behind the end")

    assert list(text_of(numbers(), tokens)) == ["n", "é", " ", "🙂"]
    assert "".join(text_of(numbers(), tokens, ("é 🙂?", "\n"))) == "né 🙂"
    assert "".join(text_of(numbers(), tokens, ("🙂",))) == "né "


def test_a_string_is_one_stop_word(saved: Path) -> None:
    text = "".join(deepres.generate(saved, "to be", seed=1, max_tokens=40))
    word = next(text[i : i + 2] for i in range(10, 30) if text.index(text[i : i + 2]) == i and text[i] in text[:i])
    assert "".join(deepres.generate(saved, "to be", seed=1, max_tokens=40, stop=word)) == text[: text.index(word)]
    with pytest.raises(DeepresError, match="a stop word has at least one character"):
        Sampling(stop="")  # type: ignore[arg-type]


def test_a_hugging_face_model_writes_what_its_own_generate_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = train_byte_pairs(["to be or not to be"], 260)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=264, n_positions=32, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(DeepresError, match="tokens are not known"):
        next(deepres.generate(f"hf:{tmp_path / 'gpt2'}", "to"))
    (tmp_path / "gpt2" / "tokenizer.json").write_text(tokens.to_notes()["tokenizer"])
    opened = open_language_model(f"hf:{tmp_path / 'gpt2'}")
    assert len(opened.vocabulary) == 264
    prompt = opened.prompt("to be")
    made = theirs.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :].tolist()
    ours = "".join(deepres.generate(opened, "to be", max_tokens=12, temperature=0))
    assert ours == "".join(text_of(iter(made), opened.vocabulary))


def test_the_command_streams_text(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(saved), "--prompt", "to be", "--seed", "1", "--max-tokens", "9", "--stop", "zz", "xyz"]) == 0
    with_prompt = capsys.readouterr().out
    assert main(["generate", str(saved), "--prompt", "to be", "--seed", "1", "--max-tokens", "9", "--no-echo"]) == 0
    assert with_prompt == "to be" + capsys.readouterr().out


def test_what_cannot_be_continued_gets_a_sentence(saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    deepres.save(deepres.create("vit-tiny-cifar", depth=1, width=24, heads=3), tmp_path / "vit.safetensors")
    for arguments, says in (
        ([str(saved), "--prompt", "to Be"], "the prompt: the character 'B' at position 3"),
        ([str(saved), "--prompt", "a" * 25], "has 25 tokens and the context of net.safetensors is 24"),
        ([str(saved), "--temperature", "-1"], "temperature is 0 or more"),
        ([str(saved), "--max-tokens", "0"], "max-tokens is at least 1"),
        ([str(saved), "--stop", ""], "stop word"),
        ([str(tmp_path / "vit.safetensors")], "takes images"),
        (["gpt-tiny"], "freshly initialised"),
    ):
        assert main(["generate", *arguments]) == 2
        assert says in capsys.readouterr().err
    model = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=3, context=8).eval()
    with pytest.raises(DeepresError, match="the prompt is empty"):
        LanguageModel(model, Characters("abc"), "abc").prompt("")
