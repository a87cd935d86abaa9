"""Weights of Hugging Face's GPT-2, Llama and ViT in our Transformers, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepres.errors import DeepresError
from deepres.nn.attention import MLPKind
from deepres.nn.transformer import Transformer, TransformerConfig
from deepres.nn.transformer_zoo import layers

# Names of a layer's parts in each family; "{}" is the layer's number. Query, key and value are one matrix here.
_GPT2 = {
    "embed.weight": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention.norm": "transformer.h.{}.ln_1",
    "attention.qkv": "transformer.h.{}.attn.c_attn",
    "attention.out": "transformer.h.{}.attn.c_proj",
    "mlp.norm": "transformer.h.{}.ln_2",
    "mlp.up": "transformer.h.{}.mlp.c_fc",
    "mlp.down": "transformer.h.{}.mlp.c_proj",
}
_LLAMA = {
    "embed.weight": "model.embed_tokens.weight",
    "norm": "model.norm",
    "head": "lm_head",
    "attention.norm": "model.layers.{}.input_layernorm",
    "attention.qkv": "model.layers.{}.self_attn.q_proj model.layers.{}.self_attn.k_proj model.layers.{}.self_attn.v_proj",
    "attention.out": "model.layers.{}.self_attn.o_proj",
    "mlp.norm": "model.layers.{}.post_attention_layernorm",
    "mlp.up": "model.layers.{}.mlp.gate_proj model.layers.{}.mlp.up_proj",
    "mlp.down": "model.layers.{}.mlp.down_proj",
}
_VIT = {
    "embed.token": "vit.embeddings.cls_token",
    "embed.project": "vit.embeddings.patch_embeddings.projection",
    "positions": "vit.embeddings.position_embeddings",
    "norm": "vit.layernorm",
    "head": "classifier",
    "attention.norm": "vit.layers.{}.layernorm_before",
    "attention.qkv": "vit.layers.{}.attention.q_proj vit.layers.{}.attention.k_proj vit.layers.{}.attention.v_proj",
    "attention.out": "vit.layers.{}.attention.o_proj",
    "mlp.norm": "vit.layers.{}.layernorm_after",
    "mlp.up": "vit.layers.{}.mlp.fc1",
    "mlp.down": "vit.layers.{}.mlp.fc2",
}
_GELU: dict[str, MLPKind] = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}
_FAMILIES = {"GPT2LMHeadModel": _GPT2, "LlamaForCausalLM": _LLAMA, "ViTForImageClassification": _VIT}


def transformer_config(model: nn.Module) -> TransformerConfig:
    """The configuration of ours that computes what a Hugging Face GPT-2, Llama or ViT computes.

    Raises ``DeepresError`` for another class, and for settings that ours has no counterpart of.
    """
    kind = type(model).__name__
    theirs: Any = model.config
    if kind not in _FAMILIES:
        raise DeepresError(f"{kind}: not a family whose weights can be read; there are {', '.join(_FAMILIES)}")
    if kind == "GPT2LMHeadModel":
        _require(kind, theirs, activation_function=tuple(_GELU), scale_attn_by_inverse_layer_idx=False)
        _require(kind, theirs, scale_attn_weights=True, add_cross_attention=False)
        return TransformerConfig(
            layers(theirs.n_layer),
            theirs.n_embd,
            theirs.n_head,
            hidden=theirs.n_inner,
            mlp=_GELU[theirs.activation_function],
            norm_eps=theirs.layer_norm_epsilon,
            vocabulary=theirs.vocab_size,
            context=theirs.n_positions,
            tie=theirs.tie_word_embeddings,
        )
    if kind == "LlamaForCausalLM":
        _require(kind, theirs, hidden_act="silu", attention_bias=False, mlp_bias=False)
        return TransformerConfig(
            layers(theirs.num_hidden_layers),
            theirs.hidden_size,
            theirs.num_attention_heads,
            theirs.num_key_value_heads,
            theirs.intermediate_size,
            None if theirs.head_dim * theirs.num_attention_heads == theirs.hidden_size else theirs.head_dim,
            mlp="swiglu",
            norm="rms",
            norm_eps=theirs.rms_norm_eps,
            positions="rotary",
            rotary_base=theirs.rope_parameters["rope_theta"],
            rotary_scaling=_rotary_scaling(kind, theirs.rope_parameters),
            bias=False,
            vocabulary=theirs.vocab_size,
            context=theirs.max_position_embeddings,
            tie=theirs.tie_word_embeddings,
        )
    _require(kind, theirs, hidden_act=tuple(_GELU), qkv_bias=True)
    return TransformerConfig(
        layers(theirs.num_hidden_layers),
        theirs.hidden_size,
        theirs.num_attention_heads,
        hidden=theirs.intermediate_size,
        mlp=_GELU[theirs.hidden_act],
        norm_eps=theirs.layer_norm_eps,
        image=theirs.image_size,
        patch=theirs.patch_size,
        in_channels=theirs.num_channels,
        num_classes=theirs.num_labels,
    )


def _rotary_scaling(kind: str, rope: dict[str, Any]) -> tuple[float, ...]:
    """``TransformerConfig.rotary_scaling`` of Hugging Face's rotary settings."""
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    rule = rope.get("rope_type", "default")
    if rule not in names:
        raise DeepresError(f"{kind}: rope_type {rule!r} is not supported; there are {', '.join(names)}")
    return tuple(rope[name] for name in names[rule])


def _require(kind: str, config: Any, **values: object) -> None:
    """Raise ``DeepresError`` where a setting has another value, or is none of several in a tuple."""
    for name, value in values.items():
        able = value if isinstance(value, tuple) else (value,)
        if (found := getattr(config, name, able[0])) not in able:
            raise DeepresError(f"{kind}: {name}={found!r} is not supported; only {', '.join(map(repr, able))} is")


def from_hugging_face(model: nn.Module) -> Transformer:
    """A copy of a Hugging Face GPT-2, Llama or ViT as a network of ours, with equal logits up to rounding; in eval mode.

    Raises ``DeepresError`` as ``transformer_config`` does.
    """
    ours = Transformer(transformer_config(model))
    theirs, own = model.state_dict(), ours.state_dict()
    state = {name: _read(theirs, names, transposed) for name, names, transposed in _table(ours, type(model).__name__)}
    missing, unexpected = ours.load_state_dict({name: t.reshape(own[name].shape) for name, t in state.items()}, strict=False)
    assert not unexpected and set(missing) <= {"head.weight"}, (missing, unexpected)  # a tied classifier
    return ours.eval()


@torch.no_grad()
def to_hugging_face(ours: Transformer, model: nn.Module) -> nn.Module:
    """Copy the weights of ``ours`` into ``model``, a Hugging Face network of the same configuration, and return it.

    Raises ``DeepresError`` where the configurations differ.
    """
    if (wanted := transformer_config(model)) != ours.config:
        raise DeepresError(f"{type(model).__name__}: its configuration is not that of the network ({wanted} and {ours.config})")
    theirs, state = model.state_dict(), ours.state_dict()
    for name, names, transposed in _table(ours, type(model).__name__):
        tensor = state[name].T if transposed else state[name]
        sizes = [theirs[one].shape[0] for one in names]
        for one, part in zip(names, tensor.split(sizes) if len(names) > 1 else (tensor,), strict=True):
            theirs[one].copy_(part.reshape(theirs[one].shape))
    return model


def _table(ours: Transformer, kind: str) -> list[tuple[str, list[str], bool]]:
    """(name of ours, names of theirs that make it up, whether theirs is transposed) of every tensor."""
    family = _FAMILIES[kind]
    rows = []
    for name in ours.state_dict():
        module, _, leaf = name.rpartition(".")
        if name in family:  # a tensor with a name of its own
            rows.append((name, [family[name]], False))
            continue
        parts = module.split(".")
        if parts[0] == "blocks":
            index = int(parts[1])
            role = f"{ours.config.blocks[index]}.{parts[-1]}"
            names = [f"{one}.{leaf}" for one in family[role].format(*[index // 2] * 3).split()]
            transposed = kind == "GPT2LMHeadModel" and parts[-1] != "norm" and leaf == "weight"  # its Conv1D is (in, out)
        else:
            if module == "head" and ours.config.vocabulary and ours.config.tie:
                continue
            names, transposed = [f"{family[module]}.{leaf}"], False
        rows.append((name, names, transposed))
    return rows


def _read(theirs: dict[str, Tensor], names: list[str], transposed: bool) -> Tensor:
    tensor = torch.cat([theirs[name] for name in names]) if len(names) > 1 else theirs[names[0]]
    return tensor.T if transposed else tensor
