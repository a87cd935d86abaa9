"""Shrinking a language model: attention and MLP blocks go one by one, and the loss is held."""

from __future__ import annotations

from pathlib import Path

import deepres
from deepres.models import open_model
from deepres.nn.transformer import Transformer


def test_parts_of_a_language_model_go_at_a_held_loss(tmp_path: Path) -> None:
    """Of four layers that have learnt a short text, three of eight parts go; the result still knows it, and its tokens."""
    play = tmp_path / "play.txt"
    play.write_text("to be, or not to be: that is the question.\n" * 80)
    small = {"depth": 4, "width": 16, "heads": 2}
    run = deepres.Run("gpt-tiny", str(play), "language", str(tmp_path / "run"), epochs=10, batch=8, lr=1e-2, size=16,
                      speed="float32", options=small)  # fmt: skip
    before = deepres.train(run, show=False).test
    assert before.bits_per_byte is not None and before.bits_per_byte < 1.5
    kept = deepres.shrink(tmp_path / "run", play, "blocks=5", epochs=4, batch=8, lr=3e-3, speed="float32", show=False,
                          out=tmp_path / "small")  # fmt: skip
    opened = open_model(tmp_path / "small")
    assert kept.blocks == (8, 5)
    assert isinstance(opened.model, Transformer) and opened.model.config.depth == 5
    assert opened.prepare is not None and len(opened.prepare.vocabulary) == opened.model.config.vocabulary
    after = deepres.evaluate(opened.model, play)
    assert after.loss < before.loss + 0.1
    assert "".join(deepres.generate(tmp_path / "small", "to be, or", max_tokens=7, temperature=0)) == " not to"


def test_a_loss_that_may_not_rise_keeps_the_parts_that_matter(tmp_path: Path) -> None:
    """Of the same network: parts go while the validation loss is held, and the log says why no more of them do."""
    play = tmp_path / "play.txt"
    play.write_text("to be, or not to be: that is the question.\n" * 80)
    run = deepres.Run("gpt-tiny", str(play), "language", str(tmp_path / "run"), epochs=6, batch=8, lr=1e-2, size=16,
                      speed="float32", options={"depth": 3, "width": 16, "heads": 2})  # fmt: skip
    deepres.train(run, show=False)
    said: list[str] = []
    kept = deepres.shrink(tmp_path / "run", play, "loss=+0.02", epochs=4, batch=8, lr=3e-3, speed="float32", show=False,
                          log=said.append)  # fmt: skip
    assert f", {kept.loss_before:.4f} before shrinking; test loss {kept.result.test.loss:.4f}." in " ".join(kept.summary())
    assert kept.target == "loss=+0.02" and kept.blocks[1] >= 2
    assert any("the validation loss would rise from" in line and line.endswith("nats") for line in said)
