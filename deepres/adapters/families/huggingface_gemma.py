"""Hugging Face's decoders with a norm at the end of each branch: ``x = x + norm(f(x))``, with another norm in front of f or none."""

from __future__ import annotations

from deepres.adapters.families._huggingface import HuggingFace, decoder_layer, example_decoder
from deepres.adapters.patterns import SitePattern, pre_norm

_BOTH = pre_norm(  # norms in front of the branch and at its end
    "input_layernorm",
    "self_attn",
    "pre_feedforward_layernorm",
    "mlp",
    pair=True,
    ends=("post_attention_layernorm", "post_feedforward_layernorm"),
)
_END = (  # at its end alone, so the branch begins with what does its work
    SitePattern(
        ("post_attention_layernorm",),
        part="attention",
        start=("self_attn",),
        core=("self_attn",),
        then=("mlp",),
        pair=True,
        layout="NLC",
    ),
    SitePattern(("post_feedforward_layernorm",), part="mlp", start=("mlp",), core=("mlp",), layout="NLC"),
)
ADAPTER = HuggingFace(
    "Gemma 2, Gemma 3, OLMo 2, OLMo 3",
    "Hugging Face",
    tuple(f"transformers.models.{name}" for name in ("gemma2", "gemma3", "olmo2", "olmo3")),
    {
        decoder_layer("gemma2", "Gemma2"): _BOTH,
        decoder_layer("gemma3", "Gemma3"): _BOTH,
        decoder_layer("olmo2", "Olmo2"): _END,
        decoder_layer("olmo3", "Olmo3"): _END,
    },
    notes="if layers have caches of several kinds, an attention can be removed only together with its layer",
    examples=(
        example_decoder("Gemma2", head_dim=16, sliding_window=8),
        example_decoder("Gemma3", config="Gemma3TextConfig", head_dim=16, sliding_window=8),
        example_decoder("Olmo2", pad_token_id=0),
        example_decoder("Olmo3", pad_token_id=0, sliding_window=8),
    ),
)
