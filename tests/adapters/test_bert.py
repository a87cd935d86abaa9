"""Post-norm layers under the lens, ghosts and shrinking, on BERT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepres
from deepres import DeepresError, lens
from deepres.adapters import delete_blocks, find_blocks
from deepres.data import open_data
from deepres.ghosting import Settings
from deepres.ghosting.gates import Gate
from deepres.ghosting.model import Ghost

transformers = pytest.importorskip("transformers")
LAYER = "bert.encoder.layer"


def bert(kind: str = "BertForSequenceClassification", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
    model = getattr(transformers, kind)(transformers.BertConfig(**{"vocab_size": 50, **size, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 50, (12, 8), generator=torch.Generator().manual_seed(0))


def test_look_measures_a_sequence_classifier(tokens: Tensor) -> None:
    model, labels = bert(), torch.arange(12) % 3
    found = lens.look(model, [(tokens, labels)], pairs=0)
    assert [site.name for site in found.sites[:2]] == [f"{LAYER}.0.attention", f"{LAYER}.0.mlp"]
    for site in found.sites:
        path, _, part = site.name.rpartition(".")
        dense = model.get_submodule(f"{path}.{'attention.output' if part == 'attention' else 'output'}.dense")
        kept = copy.deepcopy(dense.state_dict())
        with torch.no_grad():  # what the branch adds to the sum in front of the norm
            dense.weight.zero_()
            dense.bias.zero_()
            wrong = model(tokens).logits.argmax(-1) != labels
        dense.load_state_dict(kept)
        assert site.ablation is not None and site.ablation.error == pytest.approx(100 * float(wrong.float().mean()))


@torch.no_grad()
def test_a_ghost_applies_the_norms_of_a_skipped_layer(tokens: Tensor) -> None:
    model = bert()
    ghost, gate = Ghost(model), Gate(16, 3)
    gate.weight.zero_()
    gate.bias.copy_(torch.tensor([1.0, 0.0, 1.0]))  # the layer in the middle is skipped
    ghost.gates[0], ghost.settings = gate, Settings(skip_threshold=0.5, fixed=True)
    smaller = copy.deepcopy(model)
    delete_blocks(smaller, [f"{LAYER}.1"])
    mask = (torch.arange(8) < torch.arange(4, 16)[:, None]).long()
    expected = smaller(tokens, attention_mask=mask).logits
    assert not torch.allclose(expected, model(tokens, attention_mask=mask).logits, atol=1e-3)
    for settings in (Settings(skip_threshold=0.5, fixed=True), Settings(skip_threshold=0.5)):
        ghost.settings = settings
        torch.testing.assert_close(ghost(tokens, attention_mask=mask).logits, expected)
    ghost.settings = Settings(skip_threshold=0.5, fixed=True)
    torch.testing.assert_close(ghost.static()(tokens, attention_mask=mask).logits, expected)


def test_a_decoder_is_shrunk_and_no_ghost_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. a dog saw it. " * 300)
    data = open_data(tmp_path / "text.txt", size=16)
    model = bert("BertLMHeadModel", is_decoder=True, vocab_size=len(data.classes))
    with pytest.raises(DeepresError, match="an answer for every token"):
        deepres.ghost(model, data, budget=0.5)
    shrunk = deepres.shrink(model, data, "blocks=2", epochs=1, batch=16, show=False)
    assert len(shrunk.removed) == 1 and shrunk.difference < 1e-5
    small = shrunk.model.cpu().eval()
    assert len(find_blocks(small)) == 2
    small.save_pretrained(tmp_path / "small")
    again = transformers.BertLMHeadModel.from_pretrained(tmp_path / "small").eval()
    ours = deepres.load(deepres.save(small, tmp_path / "small.safetensors"))
    inputs = torch.arange(16)[None] % len(data.classes)
    with torch.no_grad():
        for other in (again, ours):
            torch.testing.assert_close(other(inputs).logits, small(inputs).logits)
