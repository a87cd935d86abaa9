"""Language models through the whole loop: tokens are saved with the run, resumed, and kept when training goes on from weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Stop, same_weights

import deepres
from deepres import DeepresError, Run
from deepres.cli.main import main
from deepres.data import BytePairs, Characters
from deepres.models import open_model, vocabulary_of
from deepres.training import Interrupted, read_log

PLAY = "to be, or not to be: that is the question.\n" * 60
SMALL = {"options": {"depth": 1, "width": 16, "heads": 2}, "size": 16, "epochs": 2.0, "batch": 8, "speed": "exact"}


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(PLAY)
    return path


@pytest.fixture(scope="module")
def trained(play: Path) -> Path:
    out = play.parent / "run"
    deepres.train(Run("gpt-tiny", str(play), out=str(out), tokens="bpe:270", **SMALL), show=False)
    return out


def test_a_limit_of_memory_is_refused_and_not_ignored(play: Path) -> None:
    with pytest.raises(DeepresError, match="--memory 3GiB: no blocks of a language model are recomputed"):
        deepres.train(Run("gpt-tiny", str(play), memory="3GiB", **SMALL), show=False)


def test_a_run_keeps_its_tokens_and_tells_bits_per_byte(trained: Path, play: Path) -> None:
    opened = open_model(trained)
    tokens = opened.prepare.vocabulary
    assert isinstance(tokens, BytePairs) and tokens == vocabulary_of(trained) and opened.classes == tokens.names
    assert opened.model.config.vocabulary == len(tokens) and opened.model.config.context == 16
    result = json.loads((trained / "result.json").read_text())
    line = read_log(trained)[-1]
    assert result["test"]["bits_per_byte"] < 6 and line["tokens"] == 16  # 16 equally likely characters take 4, and a byte 8
    assert json.loads((trained / "run.json").read_text())["recipe"]["name"] == "language"
    again = deepres.evaluate(trained, play)
    assert again.bits_per_byte == pytest.approx(result["test"]["bits_per_byte"], rel=1e-4)


def test_a_run_on_tokens_resumes_to_the_bit(trained: Path, play: Path, tmp_path: Path) -> None:
    run = Run("gpt-tiny", str(play), out=str(tmp_path / "halted"), tokens="bpe:270", **SMALL)
    with pytest.raises(Interrupted):
        deepres.train(run, show=False, callbacks=[Stop(5)])
    deepres.resume(tmp_path / "halted", show=False)
    assert same_weights(trained, tmp_path / "halted")


def test_training_goes_on_with_the_tokens_of_the_weights(trained: Path, play: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Is this the question? é " * 60, encoding="utf-8")
    run = Run("gpt-tiny", str(other), out=str(tmp_path / "more"), init=str(trained), **{**SMALL, "epochs": 1.0})
    deepres.train(run, show=False)
    assert vocabulary_of(tmp_path / "more") == vocabulary_of(trained)
    with pytest.raises(DeepresError, match="leave --tokens out"):
        deepres.train(Run("gpt-tiny", str(other), init=str(trained), tokens="characters", **SMALL), show=False)
    with pytest.raises(DeepresError, match="give --size 16 or less"):
        deepres.train(Run(str(trained), str(other), **{**SMALL, "options": {}, "size": 32}), show=False)


def test_the_best_epoch_is_that_of_the_lowest_loss(play: Path) -> None:
    result = deepres.train(Run("gpt-tiny", str(play), **{**SMALL, "epochs": 3.0}), show=False)
    losses = [record.val_loss for record in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert result.val_error == result.history[result.best_epoch - 1].val_error


def test_files_of_earlier_versions_name_their_characters_as_classes(tmp_path: Path, play: Path) -> None:
    letters = sorted(set(PLAY))
    model = deepres.create("gpt-tiny", depth=1, width=16, heads=2, vocabulary=len(letters), context=16)
    prepare = {"size": 16, "channels": 0, "mean": [], "std": [], "resize": 0, "interpolation": "bilinear"}
    deepres.save(model, tmp_path / "old.safetensors", classes=letters, prepare=prepare)
    found = open_model(tmp_path / "old.safetensors").prepare.vocabulary
    assert isinstance(found, Characters) and found.names == tuple(letters)
    measured = deepres.evaluate(tmp_path / "old.safetensors", play)
    assert measured.bits_per_byte == pytest.approx(measured.loss / math.log(2))  # each of its characters is a byte


def test_a_text_with_other_characters_is_told(trained: Path, play: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "letters"
    deepres.train(Run("gpt-tiny", str(play), out=str(out), **{**SMALL, "epochs": 1.0}), show=False)
    (tmp_path / "other.txt").write_text("QQ" + PLAY)
    assert main(["evaluate", str(out), "--data", str(tmp_path / "other.txt")]) == 2
    assert "the character 'Q' at position 0 is none of the network's" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--data", str(play)]) == 0
    assert "bits per byte" in capsys.readouterr().out
