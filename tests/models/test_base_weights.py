"""Weights of a base model, whose names lack the first word, in the network that has a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from deepres import DeepresError
from deepres.models import load_weights, open_model, open_trained

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT: dict[str, Any] = {**SMALL, "vocab_size": 20, "max_position_embeddings": 16}
IMAGE: dict[str, Any] = {**SMALL, "image_size": 16, "patch_size": 8, "num_labels": 3}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 16}
KINDS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {  # base, whole, configuration, what the base lacks
    "GPT2Config": ("GPT2Model", "GPT2LMHeadModel", GPT2, ()),  # the head is tied to the embedding
    "BertConfig": ("BertModel", "BertForSequenceClassification", TEXT, ("classifier.weight", "classifier.bias")),
    "LlamaConfig": ("LlamaModel", "LlamaForCausalLM", {**TEXT, "num_key_value_heads": 1}, ("lm_head.weight",)),
    "ViTConfig": ("ViTModel", "ViTForImageClassification", IMAGE, ("classifier.weight", "classifier.bias")),
}


def made(kind: str, config: str, **options: Any) -> nn.Module:
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_base_models_weights_are_loaded_with_a_remark(config: str, wrapped: bool) -> None:
    base, whole, options, lacks = KINDS[config]
    theirs, model = made(base, config, **options), made(whole, config, **options)
    state: dict[str, Any] = theirs.state_dict()
    if wrapped:
        state = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    report = load_weights(model, state)
    prefix = model.base_model_prefix
    assert report.complete and report.head == lacks
    said = " ".join(report.remarks)
    assert f"took the weights of the base model, {prefix!r} of this network" in said
    assert ("the head is missing and starts afresh" in said) == bool(lacks)
    assert ("pooler.dense.weight" in said) == (config == "ViTConfig")  # which a classifier has no place for
    taken = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("pooler") or config == "BertConfig":
            assert torch.equal(taken[f"{prefix}.{name}"], tensor)


def test_a_base_model_with_a_layer_too_few_does_not_fit() -> None:
    state = made("BertModel", "BertConfig", **TEXT).state_dict()
    model = made("BertForSequenceClassification", "BertConfig", **{**TEXT, "num_hidden_layers": 3})
    with pytest.raises(DeepresError, match=r"missing \(bert\.encoder\.layer\.2"):
        load_weights(model, state)


def test_a_network_with_a_fresh_head_is_not_used(tmp_path: Path) -> None:
    made("ViTForImageClassification", "ViTConfig", **IMAGE).save_pretrained(tmp_path / "vit")
    torch.save(made("ViTModel", "ViTConfig", **IMAGE).state_dict(), tmp_path / "base.pth")
    opened = open_model(f"hf:{tmp_path / 'vit'}", weights=tmp_path / "base.pth")
    assert opened.trained and opened.fresh_head == ("classifier.weight", "classifier.bias")
    with pytest.raises(DeepresError, match="without the head"):
        open_trained(f"hf:{tmp_path / 'vit'}", weights=tmp_path / "base.pth")
