"""Hugging Face's Llama and decoders like it: ``x = x + attention(norm(x)); x = x + mlp(norm(x))``."""

from __future__ import annotations

from typing import Any

from deepres.adapters.families._huggingface import HuggingFace, decoder_layer, example_decoder
from deepres.adapters.patterns import pre_norm

_KINDS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "smollm3": "SmolLM3",
    "starcoder2": "Starcoder2",
}
_HALVES = pre_norm("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", pair=True)
_PHI3 = pre_norm(
    "input_layernorm",
    "self_attn",
    "post_attention_layernorm",
    "mlp",
    pair=True,
    ends=("resid_attn_dropout", "resid_mlp_dropout"),
)
_windows: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}

ADAPTER = HuggingFace(
    "Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma, Phi-3, SmolLM3, StarCoder2",
    "Hugging Face",
    tuple(f"transformers.models.{name}" for name in (*_KINDS, "phi3")),
    {
        **{decoder_layer(name, kind): _HALVES for name, kind in _KINDS.items()},
        decoder_layer("phi3", "Phi3"): _PHI3,
    },
    notes="if layers have caches of several kinds, an attention can be removed only together with its layer",
    examples=(
        example_decoder("Llama"),
        example_decoder("Mistral", sliding_window=8),
        example_decoder("Mixtral", num_local_experts=2),
        example_decoder("Qwen2", **_windows),
        example_decoder("Qwen3", head_dim=16),
        example_decoder("Gemma", head_dim=16),
        example_decoder("SmolLM3", rotary=2, no_rope_layers=[1, 0, 1], pad_token_id=0),
        example_decoder("Starcoder2"),
        example_decoder("Phi3", pad_token_id=0),
    ),
)
