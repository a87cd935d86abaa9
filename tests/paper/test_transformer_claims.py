"""What the Transformers' experiment is made of, against formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deepres.cli.main import main
from deepres.models import load, save
from deepres.paper.lab import Lab, scale
from deepres.paper.transformer_claims import decoder, fresh_seeds, growth, layer_gradients, sequences, without_shortcuts


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return sequences(Lab(scale("quick"), tmp_path_factory.mktemp("lab")))


def test_images_become_sequences_of_shades(lab: Lab) -> None:
    tokens, labels = lab.batch(4)
    assert tokens.shape == (4, 63) and torch.equal(tokens[:, 1:], labels[:, :-1]) and int(tokens.max()) == 15
    digit = Lab(lab.scale, lab.out).data.train.pixels[0, 0]
    assert torch.equal(lab.data.train.pixels[0], (digit.flatten() // 16)[:-1])


@torch.no_grad()
def test_a_network_without_shortcuts_is_its_branches_alone_and_loads_again(lab: Lab, tmp_path: Path) -> None:
    tokens, _ = lab.batch(8)
    model = decoder(lab, 2, "post", 0, shortcut=False)
    x = model.drop(model.embed(tokens) + model.positions)
    for block in decoder(lab, 2, "post", 0).blocks:
        x = block.after(block.branch(x))
    torch.testing.assert_close(model(tokens), model.head(x))
    again = without_shortcuts(load(save(model, tmp_path / "net.safetensors")))
    assert torch.equal(again(tokens), model(tokens))


def test_the_seeds_are_none_that_the_rule_was_set_on(lab: Lab) -> None:
    assert [*fresh_seeds(lab)] == [1, 2, 3]


def test_a_budget_stops_between_trainings_and_names_the_way_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper", "transformer-degradation", "--budget", "0.001s", "--seeds", "1", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "what is done is kept" in capsys.readouterr().err and not list(tmp_path.rglob("result.json"))


def test_gradients_by_layer_add_up_to_the_whole(lab: Lab) -> None:
    tokens, labels = lab.batch(16)
    model = decoder(lab, 3, "pre", 0)
    norms = layer_gradients(model, tokens, labels)
    F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()).backward()
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.blocks.parameters()])
    assert len(norms) == 3 and sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(float(whole), rel=1e-5)
    assert growth([1.0, 2.0, 3.0, 4.0]) == 4.0
