"""The logit lens against networks of fewer blocks, and the parts of the page that language models have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import deepres
from deepres import DeepresError
from deepres.cli.main import main
from deepres.data import Characters
from deepres.ghosting.speculation import with_blocks
from deepres.lens.layer_predictions import logit_lens

LETTERS = Characters("\n abcdefghijklmnopqrstuvwxyz")


def test_a_layer_answers_what_the_network_without_the_later_ones_does() -> None:
    model = deepres.create("llama-tiny", depth=2, width=32, vocabulary=28, context=16).eval()
    tokens = torch.randint(28, (1, 12))
    lens = logit_lens(model, tokens, LETTERS)
    assert lens.kinds == ("input", "attention", "mlp", "attention", "mlp") and lens.layers[1] == "blocks.0"
    for count in (1, 2, 3, 4):
        with torch.no_grad():
            sure, best = with_blocks(model, range(count))(tokens)[0].softmax(-1).max(-1)
        shown = lens.predictions[count]
        assert [one.token for one in shown] == [LETTERS.names[i] for i in best.tolist()]
        torch.testing.assert_close(torch.tensor([one.probability for one in shown]), sure)
    assert "".join(lens.text) == LETTERS.decode(tokens[0].tolist()) and lens.next[:-1] == lens.text[1:]


def test_an_answer_is_settled_where_it_no_longer_changes() -> None:
    model = deepres.create("gpt-tiny", depth=3, width=32, vocabulary=28, context=16).eval()
    lens = logit_lens(model, torch.randint(28, (1, 12)), LETTERS)
    for i, layer in enumerate(lens.settled):
        answers = [row[i].token for row in lens.predictions]
        assert set(answers[layer:]) == {answers[-1]} and (layer == 0 or answers[layer - 1] != answers[-1])
    assert lens.mean_depth == pytest.approx(sum(lens.settled) / 12 / 6)


def test_it_reads_networks_of_other_libraries_too() -> None:
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=28, n_positions=16)).eval()
    tokens = torch.randint(28, (1, 9))
    lens = logit_lens(theirs, tokens, LETTERS)
    assert lens.kinds == ("input", *("attention", "mlp") * 3)
    with torch.no_grad():
        hidden = theirs.transformer(tokens, output_hidden_states=True).hidden_states[1]
        best = theirs.lm_head(theirs.transformer.ln_f(hidden))[0].argmax(-1).tolist()
        final = theirs(tokens).logits[0].argmax(-1).tolist()
    assert [one.token for one in lens.predictions[2]] == [LETTERS.names[i] for i in best]
    assert [one.token for one in lens.predictions[-1]] == [LETTERS.names[i] for i in final]
    with pytest.raises(DeepresError, match="one text"):
        logit_lens(theirs, tokens.expand(2, -1), LETTERS)


def test_a_compiled_model_is_read_as_the_model_itself() -> None:
    model = deepres.create("gpt-tiny", depth=2, width=32, vocabulary=28, context=16).train()
    model.blocks[0].eval()
    tokens = torch.randint(28, (1, 12))
    plain, compiled = (logit_lens(net, tokens, LETTERS) for net in (model, torch.compile(model, backend="eager")))
    assert compiled == plain and model.training and not model.blocks[0].training


def test_the_page_of_a_language_model(tmp_path: Path, browse: Callable[..., Any]) -> None:
    (tmp_path / "play.txt").write_text("to be or not to be that is the question\n" * 60)
    run = deepres.Run("gpt-tiny", str(tmp_path / "play.txt"), "language", size=16, epochs=2, out=str(tmp_path / "run"),
                      speed="float32", options={"depth": 2, "width": 16, "heads": 2})  # fmt: skip
    deepres.train(dataclasses.replace(run), show=False)
    assert main(["look", str(tmp_path / "run"), "--data", str(tmp_path / "play.txt"), "--examples", "20", "--pairs", "0",
                 "--out", str(tmp_path / "look")]) == 0  # fmt: skip
    tab = browse(tmp_path / "look" / "report.html")
    heads = tab.locator("h2").all_inner_texts()
    assert {"Attention and MLP", "Where the next token is settled", "Next-token predictions, layer by layer"} <= set(heads)
    assert tab.locator(".flow span").count() == 16 and tab.locator(".shaded tr").count() == 1 + 5
    assert "settled at" in tab.locator(".flow span").first.get_attribute("title")
    tab.wait_for_selector("[data-drawn=yes]", state="attached")
