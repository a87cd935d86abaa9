"""Shared parts of Hugging Face's families: a configuration that says how many layers there are, and something of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepres.adapters.adapter import Adapter, Example, Owners

_ANY_SIZE = ("dinov2", "dinov2_with_registers")  # these interpolate their positions to the size of the images


class HuggingFace(Adapter):
    """Every list of the configuration that has an entry per layer follows a deletion, and so do layers' own numbers."""

    def undeletable(self, owners: Owners, name: str) -> str:
        for config in configurations(owners):
            if getattr(config, "scale_attn_by_inverse_layer_idx", False):
                return "the attention of the layers behind it is scaled by their place (scale_attn_by_inverse_layer_idx)"
        return ""

    def is_configured(self, owners: Owners) -> bool:
        return bool(configurations(owners))

    def deleted(self, owners: Owners, index: int, before: int) -> None:
        for config in configurations(owners):
            if getattr(config, "num_hidden_layers", None) == before:
                shorten(config, index, before)
        self._renumber(owners)

    def part_irremovable(self, owners: Owners, core: nn.Module) -> str:
        kinds = {kind for config in configurations(owners) for kind in getattr(config, "layer_types", None) or ()}
        if len(kinds) > 1 and any(isinstance(getattr(module, "layer_idx", None), int) for module in core.modules()):
            return "this network's layers keep caches of several kinds, so an attention goes only with its layer"
        return ""

    def part_removed(self, owners: Owners, block: nn.Module) -> None:
        """The attentions that are left number themselves anew, since a cache reads its length off the first of them."""
        self._renumber(owners)
        for owner in owners:
            if hasattr(owner, "save_pretrained"):  # no configuration says that a layer lacks a branch
                owner.save_pretrained = partial(_save_with_zeros, owner)  # type: ignore[assignment]

    def _renumber(self, owners: Owners) -> None:
        left = [m for m in owners[0].modules() if isinstance(getattr(m, "layer_idx", None), int)]
        places = sorted({int(m.layer_idx) for m in left})  # type: ignore[arg-type]
        for module in left:
            module.layer_idx = places.index(int(module.layer_idx))  # type: ignore[arg-type, assignment]

    def spec(self, model: nn.Module) -> dict[str, Any]:
        config = getattr(model, "config", None)
        longest = getattr(config, "max_position_embeddings", None)
        image = getattr(config, "image_size", None)
        if getattr(config, "model_type", None) in _ANY_SIZE:
            image = longest = None
        size = image if isinstance(image, int) else longest
        return {"layout": "NLC", "size": size, "labels": labels(config)}


def _save_with_zeros(model: Any, folder: str | Path, **options: Any) -> None:
    """``model.save_pretrained``, with zeros for the weights of removed branches.

    transformers builds every layer whole, so what it loads from ``folder`` computes what ``model`` does, at the whole network's cost.
    """
    with torch.device("meta"):
        whole = type(model)._from_config(copy.deepcopy(model.config)).state_dict()
    state = options.pop("state_dict", None) or model.state_dict()
    gone = {name: torch.zeros(tensor.shape, dtype=model.dtype) for name, tensor in whole.items() if name not in state}
    type(model).save_pretrained(model, folder, state_dict={**state, **gone}, **options)


def configurations(owners: Owners) -> list[Any]:
    """The configurations of the modules around a block, each once."""
    found = {id(config): config for owner in owners if (config := getattr(owner, "config", None)) is not None}
    return list(found.values())


def shorten(config: Any, index: int, before: int) -> None:
    """Take layer ``index`` of ``before`` out of ``config``: the count, the kinds of layers, the names of a backbone's stages."""
    stages = getattr(config, "stage_names", None)  # a backbone's: the stem, then one for each layer
    outputs = list(getattr(config, "out_indices", None) or ())
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == before:
            setattr(config, name, [*kinds[:index], *kinds[index + 1 :]])
    config.num_hidden_layers = before - 1
    full = getattr(config, "max_window_layers", None)
    if isinstance(full, int) and index < full <= before:
        config.max_window_layers = full - 1
    if stages is not None and len(stages) == before + 1:
        config.stage_names = ["stem", *(f"stage{i}" for i in range(1, before))]
        kept = sorted({i - 1 if i > index else i for i in (i % (before + 1) for i in outputs)})
        config.set_output_features_output_indices(out_features=None, out_indices=kept)


def labels(config: object) -> tuple[str, ...] | None:
    """``id2label``, unless it holds only the place holders of a fresh configuration."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping) or all(str(name) == f"LABEL_{i}" for i, name in names.items()):
        return None
    return tuple(str(names[i]) for i in sorted(names, key=int))


def from_config(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A builder of the Hugging Face class ``model`` from the class ``config``."""

    def build() -> nn.Module:
        import transformers

        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return built

    return build


TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def example_decoder(kind: str, *, config: str = "", rotary: int = 3, **options: Any) -> Example:
    """A small decoder of text of the class ``{kind}ForCausalLM``; ``rotary`` of its three layers have rotary positions."""
    text = {**TINY, "vocab_size": 50, "max_position_embeddings": 32, "num_key_value_heads": 1}
    build = from_config(f"{kind}ForCausalLM", config or f"{kind}Config", **text, **options)
    return Example(kind, build, 6, (4, 12), 50, other_additions=2 * rotary, generates=True)  # which turn queries and keys


def decoder_layer(package: str, kind: str) -> str:
    """The name of the class of a decoder's layer, as adapters know it."""
    return f"transformers.models.{package}.modeling_{package}:{kind}DecoderLayer"


def is_transposed(layer: nn.Module) -> bool:
    """Return whether ``layer`` is a linear layer whose weight is (in, out), as in GPT-2."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"
