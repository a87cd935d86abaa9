"""Hugging Face's Llama, Mistral and Qwen2."""

from __future__ import annotations

from typing import Any

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import TINY, HuggingFace, from_config
from deepres.adapters.patterns import pre_norm

_halves = pre_norm("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", pair=True)
_m = "transformers.models."
_text: dict[str, Any] = {**TINY, "vocab_size": 50, "max_position_embeddings": 32, "num_key_value_heads": 1}
_windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


def _example(name: str, **options: Any) -> Example:
    build = from_config(f"{name}ForCausalLM", f"{name}Config", **_text, **options)
    return Example(name, build, 6, (4, 12), 50, other_additions=6, generates=True)


ADAPTER = HuggingFace(
    "Llama, Mistral, Qwen2",
    "Hugging Face",
    (_m + "llama", _m + "mistral", _m + "qwen2"),
    {
        _m + "llama.modeling_llama:LlamaDecoderLayer": _halves,
        _m + "mistral.modeling_mistral:MistralDecoderLayer": _halves,
        _m + "qwen2.modeling_qwen2:Qwen2DecoderLayer": _halves,
    },
    notes="if layers have caches of several kinds, an attention can be removed only together with its layer",
    examples=(_example("Llama"), _example("Mistral", sliding_window=8), _example("Qwen2", **_windows)),
)
