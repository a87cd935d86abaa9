"""The ways of benchmarks/ghost_pretrained.py, on a small network of digits."""

from pathlib import Path

import pytest
import torch

from benchmarks import ghost_pretrained
from benchmarks.ghost_pretrained import WAYS, EntropyHead, Ground
from benchmarks.tell_ghost import pretrained_text
from deepres.data import Data
from deepres.exits import ExitHead


def test_each_way_gives_an_outcome(run: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost_pretrained, "BATCHES", (4,))
    monkeypatch.setattr(ghost_pretrained, "DEVICE", torch.device("cpu"))
    found = {}
    for name in ("exits", "exits, entropy threshold", "random skipping"):  # gates take a pass for each share that is tried
        ground = Ground(run, data, data.prepare.size, 60, 80, tmp_path)
        found[name] = [ground.outcome(WAYS[name](ground, 5.0))]
    assert len(list(tmp_path.glob("*.pt"))) == 1  # gates and exits are fitted once
    for (one,) in found.values():
        assert one["4"]["rise"] < 12 and 0 < one["4"]["macs"] < 1.5
    assert found["exits, entropy threshold"][0]["4"]["exited"] > 0
    result = {"what": "digits", "seeds": 1, "allowed": 5.0, "chosen_on": 60, "confirmed_on": 80, "ways": found}
    assert "| random skipping, batch 4 | " in pretrained_text(result)


def test_confidence_by_entropy() -> None:
    torch.manual_seed(0)
    head = ExitHead(8, 3)
    head.weight.normal_(std=3.0)
    signal = torch.randn(5, 2, 4, 4)
    by_entropy = EntropyHead.of(head)
    logits, confidence = by_entropy(signal)
    torch.testing.assert_close(logits, head(signal)[0])
    expected = 1 - torch.distributions.Categorical(logits=logits).entropy() / torch.log(torch.tensor(3.0))
    torch.testing.assert_close(confidence, expected)
    alone, sure = by_entropy.single(signal[:1])
    assert sure == pytest.approx(float(confidence[0]), abs=1e-6) and alone == pytest.approx(logits[0].numpy(), abs=1e-5)
