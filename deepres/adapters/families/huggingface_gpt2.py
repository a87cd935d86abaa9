"""Hugging Face's GPT-2."""

from __future__ import annotations

from deepres.adapters.adapter import Example
from deepres.adapters.families._huggingface import HuggingFace, from_config
from deepres.adapters.patterns import SitePattern

_PATTERNS = (
    SitePattern(
        ("attn",), part="attention", start=("ln_1",), core=("attn",), then=("ln_cross_attn", "ln_2"), pair=True, layout="NLC"
    ),
    SitePattern(
        ("crossattention",),
        part="cross-attention",
        start=("ln_cross_attn",),
        core=("crossattention",),
        then=("ln_2",),
        pair=True,
        layout="NLC",
    ),
    SitePattern(("mlp",), part="mlp", start=("ln_2",), core=("mlp",), layout="NLC"),
)
ADAPTER = HuggingFace(
    "GPT-2",
    "Hugging Face",
    ("transformers.models.gpt2",),
    {"transformers.models.gpt2.modeling_gpt2:GPT2Block": _PATTERNS},
    notes="with `scale_attn_by_inverse_layer_idx` no layer can be deleted",
    examples=(
        Example(
            "GPT-2",
            from_config("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_positions=32, n_embd=32, n_layer=3, n_head=2),
            6,
            (4, 12),
            50,
            other_additions=3,  # in the activation, x + 0.044715 x^3
            generates=True,
        ),
    ),
)
