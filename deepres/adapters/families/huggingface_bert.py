"""Hugging Face's BERT: post-norm layers, ``y = norm(x + f(x))``."""

from __future__ import annotations

from typing import Any

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import TINY, HuggingFace, from_config
from deepres.adapters.patterns import SitePattern

_ATTENTION = SitePattern(
    ("attention.output.dropout",),
    after=("attention.output.LayerNorm",),
    part="attention",
    start=("attention.self",),
    start_pair=True,
    core=("attention.output.dense",),
    layout="NLC",
)
_MLP = SitePattern(
    ("output.dropout",),
    after=("output.LayerNorm",),
    part="mlp",
    start=("intermediate",),
    core=("output.dense",),
    layout="NLC",
)
_text: dict[str, Any] = {**TINY, "vocab_size": 50, "max_position_embeddings": 32}
ADAPTER = HuggingFace(
    "BERT",
    "Hugging Face",
    ("transformers.models.bert",),
    {"transformers.models.bert.modeling_bert:BertLayer": (_ATTENTION, _MLP)},
    notes="a norm follows each sum, so deleting a layer removes its branches and keeps its norms, and the configuration keeps its "
    "`num_hidden_layers`; a decoder's cross-attention is not a site",
    examples=(
        Example(
            "BERT",
            from_config("BertForSequenceClassification", "BertConfig", **_text, num_labels=10),
            6,
            (4, 12),
            50,
            other_additions=1,  # of word and token type embeddings
        ),
        Example("masked BERT", from_config("BertForMaskedLM", "BertConfig", **_text), 6, (4, 12), 50, other_additions=1),
        Example(
            "BERT as a decoder",
            from_config("BertLMHeadModel", "BertConfig", **_text, is_decoder=True),
            6,
            (4, 12),
            50,
            other_additions=1,
            generates=True,
        ),
    ),
)
