"""Hugging Face's BERT and encoders like it. In BERT a norm follows each sum, ``y = norm(x + f(x))``; in ModernBERT one precedes f."""

from __future__ import annotations

from typing import Any

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import TINY, HuggingFace, from_config
from deepres.adapters.patterns import SitePattern, pre_norm

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
_DISTILLED = (
    SitePattern(
        ("attention",),
        after=("sa_layer_norm",),
        part="attention",
        start=("attention",),
        core=("attention",),
        pair=True,
        layout="NLC",
    ),
    SitePattern(("ffn",), after=("output_layer_norm",), part="mlp", start=("ffn",), core=("ffn",), layout="NLC"),
)
_m = "transformers.models."
_KINDS = {"bert": "Bert", "roberta": "Roberta", "xlm_roberta": "XLMRoberta", "camembert": "Camembert", "electra": "Electra"}
_text: dict[str, Any] = {**TINY, "vocab_size": 50, "max_position_embeddings": 32}
_small = {"vocab_size": 50, "max_position_embeddings": 32, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64}


def _example(
    name: str, model: str, config: str, *, other_additions: int = 1, generates: bool = False, **options: Any
) -> Example:
    """A small encoder; ``other_additions``: besides its sites, as of the embeddings of words, token types and positions."""
    return Example(
        name, from_config(model, config, **options), 6, (4, 12), 50, other_additions=other_additions, generates=generates
    )


def _classifier(kind: str, name: str, *, other_additions: int = 1, **options: Any) -> Example:
    settings = {**_text, "num_labels": 10, **options}
    return _example(name, f"{kind}ForSequenceClassification", f"{kind}Config", other_additions=other_additions, **settings)


ADAPTER = (
    HuggingFace(
        "BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT",
        "Hugging Face",
        tuple(_m + package for package in (*_KINDS, "distilbert")),
        {
            **{f"{_m}{package}.modeling_{package}:{kind}Layer": (_ATTENTION, _MLP) for package, kind in _KINDS.items()},
            _m + "distilbert.modeling_distilbert:TransformerBlock": _DISTILLED,
        },
        notes="a norm follows each sum, so deleting a layer removes its branches and keeps its norms, and the configuration keeps its "
        "`num_hidden_layers`; a decoder's cross-attention is not a site",
        examples=(
            _classifier("Bert", "BERT"),
            _example("masked BERT", "BertForMaskedLM", "BertConfig", **_text),
            _example("BERT as a decoder", "BertLMHeadModel", "BertConfig", **_text, is_decoder=True, generates=True),
            _classifier("Roberta", "RoBERTa", other_additions=2, max_position_embeddings=34),
            _classifier("XLMRoberta", "XLM-RoBERTa", other_additions=2, max_position_embeddings=34),
            _classifier("Camembert", "CamemBERT", other_additions=2, max_position_embeddings=34),
            _classifier("Electra", "ELECTRA", embedding_size=32),
            _classifier("DistilBert", "DistilBERT", other_additions=0, **_small),
        ),
    ),
    HuggingFace(
        "ModernBERT",
        "Hugging Face",
        (_m + "modernbert",),
        {
            _m + "modernbert.modeling_modernbert:ModernBertEncoderLayer": pre_norm(
                "attn_norm", "attn", "mlp_norm", "mlp", pair=True
            )
        },
        examples=(
            # two additions a layer turn queries and keys
            _classifier("ModernBert", "ModernBERT", other_additions=6, pad_token_id=0, local_attention=8),
        ),
    ),
)
